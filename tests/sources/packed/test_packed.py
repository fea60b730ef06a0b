"""Packed checkpoints against the values of the library or formula that packs them, bit for bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from packed_checkpoints import (
    awq,
    bitsandbytes,
    compressed,
    describe,
    fbgemm,
    fp8,
    gptq,
    hqq,
    modelopt,
    modelopt_fp8,
    repacked,
    require_library,
    torchao,
)
from safetensors.torch import load_file, save_file

import torch2mlx
from torch2mlx.errors import SourceError, UnsupportedError
from torch2mlx.planning.regions import full
from torch2mlx.quantization.kernel import dequantize_rows
from torch2mlx.quantization.scheme import Scheme
from torch2mlx.sources import open_checkpoint
from torch2mlx.verification.reference import read_state


def ao():
    from torchao import quantization

    return quantization


INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
# name → (what packs, dtype of the library's values, format of MLX that takes them or None)
FORMATS = {
    "gptq 2 bits": (lambda: gptq(2, 32), torch.float16, Scheme(2, 32)),
    "gptq 3 bits": (lambda: gptq(3, 64), torch.float16, Scheme(3, 64)),
    "gptq 4 bits": (lambda: gptq(4, 64), torch.float16, Scheme(4, 64)),
    "gptq 8 bits, whole rows": (lambda: gptq(8, -1), torch.float16, Scheme(8, 128)),
    "gptq asymmetric": (lambda: gptq(4, 32, symmetric=False), torch.float16, Scheme(4, 32)),
    "gptq_v2": (lambda: gptq(4, 32, False, version=2), torch.float16, Scheme(4, 32)),
    "gptq by activations": (lambda: gptq(4, 32, order="activations"), torch.float16, None),
    "awq": (awq, torch.float16, Scheme(4, 64)),
    "pack-quantized": (lambda: compressed("pack-quantized", INT4), torch.bfloat16, Scheme(4, 32)),
    "pack-quantized asymmetric": (
        lambda: compressed("pack-quantized", {**INT4, "symmetric": False}),
        torch.bfloat16,
        Scheme(4, 32),
    ),
    "pack-quantized int8 channel": (
        lambda: compressed("pack-quantized", {"num_bits": 8, "strategy": "channel"}),
        torch.bfloat16,
        Scheme(8, 128),
    ),
    "int-quantized": (
        lambda: compressed("int-quantized", {"num_bits": 8, "strategy": "channel"}),
        torch.bfloat16,
        Scheme(8, 128),
    ),
    "float-quantized tensor": (
        lambda: compressed(
            "float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}
        ),
        torch.bfloat16,
        None,
    ),
    "float-quantized channel": (
        lambda: compressed(
            "float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}
        ),
        torch.bfloat16,
        None,
    ),
    "float-quantized block": (
        lambda: compressed(
            "float-quantized",
            {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [64, 32]},
        ),
        torch.bfloat16,
        None,
    ),
    "naive-quantized": (
        lambda: compressed("naive-quantized", {"num_bits": 8, "strategy": "channel"}),
        torch.bfloat16,
        Scheme(8, 128),
    ),
    "mxfp8-quantized": (
        lambda: compressed(
            "mxfp8-quantized",
            {
                "num_bits": 8, "type": "float", "strategy": "group", "group_size": 32,
                "scale_dtype": "torch.uint8",
            },
        ),
        torch.bfloat16,
        Scheme(8, 32, "mxfp8"),
    ),
    "nvfp4-pack-quantized": (
        lambda: compressed(
            "nvfp4-pack-quantized",
            {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
        ),
        torch.bfloat16,
        None,
    ),
    "mxfp4-pack-quantized": (
        lambda: compressed(
            "mxfp4-pack-quantized",
            {
                "num_bits": 4, "type": "float", "strategy": "group", "group_size": 32,
                "scale_dtype": "torch.uint8",
            },
        ),
        torch.bfloat16,
        Scheme(4, 32, "mxfp4"),
    ),
    "modelopt nvfp4": (modelopt, torch.float32, None),
    "modelopt fp8": (modelopt_fp8, torch.float32, None),
    "fbgemm_fp8": (fbgemm, torch.float32, None),
    "bitsandbytes nf4": (lambda: bitsandbytes("nf4"), torch.float32, None),
    "bitsandbytes nf4 nested": (lambda: bitsandbytes("nf4", nested=True), torch.float32, None),
    "bitsandbytes fp4": (lambda: bitsandbytes("fp4"), torch.float32, None),
    "bitsandbytes int8": (lambda: bitsandbytes("int8"), torch.float32, None),
    "fp8 blocks": (fp8, torch.float32, None),
    "fp8 blocks, the last cut short": (lambda: fp8((48, 80)), torch.float32, None),
    "fp8 blocks, powers of two": (
        lambda: fp8(powers=True),
        torch.float32,
        Scheme(8, 32, "mxfp8"),
    ),
    "hqq 8 bits": (lambda: hqq(8, 64), torch.float16, None),
    "hqq 4 bits": (lambda: hqq(4, 64), torch.float16, None),
    "hqq 4 bits, whole zero points": (
        lambda: hqq(4, 64, optimize=False), torch.float16, Scheme(4, 64)
    ),
    "hqq 4 bits, by columns": (lambda: hqq(4, 64, axis=0), torch.float16, None),
    "hqq 3 bits": (lambda: hqq(3, 64), torch.float16, None),
    "hqq 2 bits": (lambda: hqq(2, 32, dtype=torch.bfloat16), torch.bfloat16, None),
    "hqq 1 bit": (lambda: hqq(1, 32), torch.float16, None),
    "torchao int8": (
        lambda: torchao(lambda: ao().Int8WeightOnlyConfig()), torch.bfloat16, Scheme(8, 128)
    ),
    "torchao int4 in bytes": (
        lambda: torchao(
            lambda: ao().IntxWeightOnlyConfig(
                weight_dtype=torch.int4, granularity=ao().PerGroup(32)
            )
        ),
        torch.bfloat16,
        Scheme(4, 32),
    ),
    "torchao fp8": (lambda: torchao(lambda: ao().Float8WeightOnlyConfig()), torch.bfloat16, None),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_values_and_grids_are_exact(checkpoint, tmp_path, name):
    make, dtype, scheme = FORMATS[name]
    require_library(name)
    settings, pack = make()
    source = "llama"
    values = repacked(checkpoint(source, "float32"), tmp_path / "packed", settings, pack)
    opened = open_checkpoint(tmp_path / "packed")
    assert "quantization_config" not in opened.config
    assert opened.state.keys() == values.keys()
    found = read_state(opened.state, opened.source)
    for tensor, expected in values.items():
        assert torch.equal(found[tensor].to(dtype).float(), expected.to(dtype).float()), tensor
    packed = {t for t in values if t not in opened.plain}
    assert set(opened.packed) == (packed if scheme else set())
    for tensor, grid in opened.packed.items():
        assert Scheme(grid.bits, grid.group_size, grid.mode) == scheme
        parts = {s: e.read(full(e.shape), opened.source) for s, e in grid.parts.items()}
        decoded = dequantize_rows(parts, grid.scales.dtype, scheme)
        assert np.array_equal(decoded, found[tensor].numpy()), tensor
    expr = opened.state["model.layers.1.mlp.down_proj.weight"]
    part = (range(5, 77, 3), range(33, 250))
    whole = expr.read(full(expr.shape), opened.source)
    assert np.array_equal(expr.read(part, opened.source), whole[5:77:3, 33:250])


def test_modelopts_own_dequantization(checkpoint, tmp_path):
    qtensor = pytest.importorskip("modelopt.torch.quantization.qtensor")

    def pack(module, weight):
        packed, scales, factor = qtensor.NVFP4QTensor.quantize(weight, 16)
        value = packed.dequantize(
            torch.float32, scale=scales, double_scale=factor, block_sizes={-1: 16}
        )
        codes = packed._quantized_data
        return {"weight": codes, "weight_scale": scales, "weight_scale_2": factor}, value

    settings = {"quantization": {"quant_algo": "NVFP4"}, "quant_method": "modelopt"}
    folder = tmp_path / "packed"
    values = repacked(checkpoint("llama", "float32"), folder, settings, pack)
    opened = open_checkpoint(folder)
    found = read_state(opened.state, opened.source)
    assert all(torch.equal(found[n], t) for n, t in values.items())


def test_fbgemms_experts(tmp_path):
    """[experts, in, out] with scales in the two shapes that transformers writes."""
    config = {"quantization_config": {"quant_method": "fbgemm_fp8"}, "model_type": "llama4_text"}
    folder = tmp_path / "experts"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    block = "model.layers.0.feed_forward.experts"
    shapes = {"gate_up_proj": ((4, 6, 10), (4, 1, 10)), "down_proj": ((4, 6, 6), (4, 6, 1))}
    tensors, values = {}, {}
    for name, (shape, grid) in shapes.items():
        codes = torch.randn(shape).to(torch.float8_e4m3fn)
        scales = torch.rand(grid)
        tensors |= {f"{block}.{name}": codes, f"{block}.{name}_scale": scales}
        values[f"{block}.{name}"] = codes.float() * scales.reshape(4, 1, -1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    opened = open_checkpoint(folder)
    found = read_state(opened.state, opened.source)
    assert all(torch.equal(found[n], t) for n, t in values.items())
    edited(folder, lambda t: t.update({f"{block}.down_proj_scale": torch.ones(4, 5)}))
    with pytest.raises(SourceError, match=r"down_proj: F8_E4M3 \[4, 6, 6\] with scales \[4, 5\]"):
        open_checkpoint(folder)


def gpt_oss(folder):
    """A gpt-oss checkpoint with bf16 experts, and the same in MXFP4 with transformers' values."""
    from transformers import AutoModelForCausalLM, GptOssConfig
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    config = GptOssConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, vocab_size=96, num_local_experts=4,
        num_experts_per_tok=2, sliding_window=12, max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 50_000.0},
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    values = dict(tensors)
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, width, out = tensors.pop(name).shape
        blocks = torch.randint(0, 256, (experts, out, width // 32, 16), dtype=torch.uint8)
        scales = torch.randint(118, 124, blocks.shape[:-1], dtype=torch.uint8)
        values[name] = convert_moe_packed_tensors(blocks, scales)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    describe(folder, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    return values


def test_gpt_oss_experts_keep_their_blocks(tmp_path):
    values = gpt_oss(tmp_path / "source")
    opened = open_checkpoint(tmp_path / "source")
    found = read_state(opened.state, opened.source)
    assert all(torch.equal(found[n].bfloat16(), t) for n, t in values.items())
    result = torch2mlx.convert(tmp_path / "source", tmp_path / "out", quantize=True)
    assert result.manifest.verification["audit"]["counts"]["repacked"] == 6
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization"]["mode"] == "mxfp4"
    written = load_file(tmp_path / "out" / "model.safetensors")
    source = load_file(tmp_path / "source" / "model.safetensors")
    blocks = source["model.layers.0.mlp.experts.down_proj_blocks"]
    scales = source["model.layers.0.mlp.experts.down_proj_scales"]
    module = "model.layers.0.mlp.experts.down_proj"
    assert torch.equal(written[f"{module}.weight"].view(torch.uint8), blocks.flatten(2))
    assert torch.equal(written[f"{module}.scales"], scales)
    assert written["lm_head.weight"].dtype == torch.bfloat16


@pytest.mark.slow
def test_fp8_experts_of_odd_sizes_pass_the_gate(checkpoint, tmp_path):
    settings, pack = fp8((48, 80))
    folder = tmp_path / "packed"
    values = repacked(checkpoint("deepseek_v3", "float32"), folder, settings, pack)
    assert sum(".experts." in name for name in values) == 24
    result = torch2mlx.convert(folder, tmp_path / "out", quantize=True, dtype="float32")
    assert result.manifest.verification["audit"]["passed"]
    assert torch2mlx.verify(folder, tmp_path / "out").passed


def edited(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


Q = "model.layers.0.self_attn.q_proj"


def test_malformed_checkpoints_end_in_one_message(checkpoint, tmp_path):
    settings, pack = gptq(4, 64)
    folder = tmp_path / "packed"
    repacked(checkpoint("llama", "float16"), folder, settings, pack)
    cases = [
        ({**settings, "group_size": 32}, SourceError, r"q_proj: .* groups of 32: qzeros \[2, 16\]"),
        ({**settings, "bits": 8}, SourceError, r"21 problems, method gptq"),
        ({**settings, "bits": 5}, UnsupportedError, "GPTQ with bits 5"),
        *(
            (
                {**settings, "quant_method": method},
                UnsupportedError,
                rf"packed by '{method}', which is not known.*dequantize them with the library",
            )
            for method in ("aqlm", "eetq", "higgs", "quanto", "spqr", "vptq")
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "sparsity_config": {"format": "sparse-24-bitmask"},
                "config_groups": {},
            },
            UnsupportedError,
            r"sparse weights \(sparse-24-bitmask\) .*decompress it with compressed-tensors",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {},
                "transform_config": {
                    "config_groups": {
                        "R4": {
                            "type": "hadamard",
                            "apply": [
                                {"targets": ["re:.*down_proj$"], "location": "weight_input"},
                                {"targets": ["re:.*down_proj$"], "location": "input"},
                            ],
                        }
                    }
                },
            },
            UnsupportedError,
            r"transforms of activations \(input\), .*another model's",
        ),
        (
            {"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"},
            UnsupportedError,
            "quant_algo 'W4A8_AWQ'.*dequantize the weights with ModelOpt",
        ),
        (None, SourceError, "is part of a packed weight, but config.json has no"),
    ]
    for changed, error, message in cases:
        describe(folder, changed)
        with pytest.raises(error, match=message):
            open_checkpoint(folder)
    describe(folder, {**settings, "desc_act": True})
    assert any("activations (g_idx)" in note for note in open_checkpoint(folder).notes)
    describe(folder, settings)
    edited(folder, lambda t: t[f"{Q}.g_idx"].__setitem__(5, 7))
    opened = open_checkpoint(folder)
    with pytest.raises(SourceError, match=r"g_idx has values from 0 to 7, but there are 2 groups"):
        read_state(opened.state, opened.source)
    edited(folder, lambda t: t.pop(f"{Q}.scales"))
    with pytest.raises(SourceError, match=rf"{Q}: scales missing beside qweight"):
        open_checkpoint(folder)


def test_fp8_without_scales_is_refused(checkpoint, tmp_path):
    settings, pack = fp8()
    folder = tmp_path / "packed"
    repacked(checkpoint("llama", "bfloat16"), folder, settings, pack)
    edited(folder, lambda t: t.pop(f"{Q}.weight_scale_inv"))
    with pytest.raises(SourceError, match=rf"{Q}\.weight: F8_E4M3 without scales"):
        open_checkpoint(folder)
    edited(folder, lambda t: t.update({f"{Q}.weight_scale_inv": torch.ones(3, 3)}))
    with pytest.raises(SourceError, match=r"scales \[3, 3\] for a weight \[128, 128\] in blocks"):
        open_checkpoint(folder)
