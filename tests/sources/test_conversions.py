"""Every kind of checkpoint goes through `convert` with all of its proofs.

What was written is then loaded by mlx-lm and compared with the model that the source's own library
has, so that no reader of ours stands on both sides.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from adapters import mlx_adapter, model_of, trained
from gguf_files import write_gguf
from packed_checkpoints import repacked, require_library
from releases import byte_ranks, meta_release, mistral_release, tekken_content, tiktoken_file
from safetensors.torch import load_file
from test_packed import FORMATS
from transformers import AutoConfig, AutoModelForCausalLM

import torch2mlx

IDS = [[(7 * i) % 250 + 3 for i in range(24)]]
ROUNDED = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
Logits = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Kind:
    """A kind of checkpoint.

    Attributes:
        write: (folder, fixture of checkpoints) → the logits that its library has.
        options: of `convert`.
        within: relative L2 error; the dtype in which the library computes the weights.
        repacked: tensors whose codes are kept.
        quick: whether it runs with the fast tests.
    """

    write: Callable[[Path, Any], Logits]
    options: dict[str, Any] = field(default_factory=dict)
    within: float = 1e-4
    repacked: int = 0
    quick: bool = False


def logits_of(model: Any) -> Logits:
    with torch.no_grad():
        return model.eval()(torch.tensor(IDS)).logits.numpy()


def logits_with(folder: Path, state: dict[str, torch.Tensor]) -> Logits:
    """Of transformers' model of a folder's config with these weights."""
    config = AutoConfig.from_pretrained(folder)
    config.vocab_size = len(state["lm_head.weight"])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return logits_of(model)


def packed(name: str) -> Kind:
    make, dtype, scheme = FORMATS[name]

    def write(folder: Path, checkpoint: Any) -> Logits:
        require_library(name)
        base = checkpoint("llama_short", "float32")
        return logits_with(base, repacked(base, folder, *make()))

    kept = 7 if scheme else 0
    quick = name in ("gptq asymmetric", "fp8 blocks")
    return Kind(write, {"quantize": kept > 0}, ROUNDED[dtype], kept, quick)


def llama_release(folder: Path, checkpoint: Any) -> Logits:
    """Of 8 ranks, with more tokens than the model of the tests has."""
    base = checkpoint("llama", "float32")
    state = load_file(base / "model.safetensors")
    more = torch.randn(len(byte_ranks()) + 258 - 288, 128)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.cat([state[name], more])
    meta_release(folder, state, 8)
    tiktoken_file(folder / "tokenizer.model")
    return logits_with(base, state)


def tekken_release(folder: Path, checkpoint: Any) -> Logits:
    base = checkpoint("llama_short", "float32")
    state = load_file(base / "model.safetensors")
    mistral_release(folder, state)
    params = json.loads((folder / "params.json").read_text()) | {"n_layers": 1}
    (folder / "params.json").write_text(json.dumps(params))
    (folder / "tekken.json").write_text(json.dumps(tekken_content()))
    return logits_with(base, state)


def torch_files(folder: Path, checkpoint: Any) -> Logits:
    """Two .bin files with their index."""
    base = checkpoint("llama_short", "float32")
    shutil.copytree(base, folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files: dict[str, dict[str, torch.Tensor]] = {}
    for i, (name, tensor) in enumerate(state.items()):
        files.setdefault(f"pytorch_model-{i % 2 + 1:05d}-of-00002.bin", {})[name] = tensor
    for file, part in files.items():
        torch.save(part, folder / file)
    index = {"metadata": {}, "weight_map": {n: f for f, part in files.items() for n in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return logits_with(base, state)


def gguf_file(quantized: str) -> Callable[[Path, Any], Logits]:
    """By gguf's own writer and quantization; the values are those that it dequantizes."""

    def write(folder: Path, checkpoint: Any) -> Logits:
        import gguf

        folder.mkdir()
        kind = gguf.GGMLQuantizationType[quantized]
        model = model_of(checkpoint("llama_short", "float32"))
        write_gguf(folder / "model.gguf", "llama", model, {}, kind)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    codes = gguf.quantize(parameter.numpy(), kind)
                    parameter.copy_(torch.from_numpy(gguf.dequantize(codes, kind)))
        return logits_of(model)

    return write


def mlx_folder(folder: Path, checkpoint: Any) -> Logits:
    """What mlx-lm quantized."""
    from mlx_lm import convert

    base = checkpoint("llama_short", "float32", flat=True)
    convert(str(base), str(folder), quantize=True, q_group_size=32, q_bits=4)
    return logits_in_mlx(folder)


def peft_adapter(**options: Any) -> Callable[[Path, Any], Logits]:
    def write(folder: Path, checkpoint: Any) -> Logits:
        base = checkpoint("llama", "float32")
        merged = trained(model_of(base), folder, **options)
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text()) | {"base_model_name_or_path": str(base)}
        path.write_text(json.dumps(config))
        return logits_with(base, merged)

    return write


def mlx_lm_adapter(kind: str) -> Callable[[Path, Any], Logits]:
    def write(folder: Path, checkpoint: Any) -> Logits:
        base = checkpoint("llama", "float32", flat=True)
        mlx_adapter(folder, kind)
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model": str(base)}))
        return logits_in_mlx(base, folder)

    return write


def logits_in_mlx(folder: Path, adapter: Path | None = None) -> Logits:
    """Of mlx-lm's model, computed in float32."""
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    if adapter is not None:
        model = load_adapters(model, str(adapter))
    model.set_dtype(mx.float32)
    return np.array(model(mx.array(IDS)))


PACKED = {name: packed(name) for name in FORMATS}
OTHERS = {
    "torch files (.bin) with an index": Kind(torch_files),
    "GGUF, Q4_0, `-q`": Kind(gguf_file("Q4_0"), {"quantize": True}, 4e-3, 9, True),
    "GGUF, Q5_1": Kind(gguf_file("Q5_1"), within=4e-3),
    "a folder that mlx-lm quantized, `-d`": Kind(mlx_folder, {"dequantize": True}, within=4e-3),
    "Llama's release of 8 ranks, tiktoken": Kind(llama_release, quick=True),
    "Mistral's release, tekken": Kind(tekken_release),
    "LoRA of PEFT": Kind(peft_adapter()),
    "DoRA of PEFT": Kind(peft_adapter(use_dora=True)),
    "LoRA of mlx-lm": Kind(mlx_lm_adapter("lora")),
    "DoRA of mlx-lm": Kind(mlx_lm_adapter("dora")),
}
KINDS = PACKED | OTHERS


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if k.quick else pytest.mark.slow) for n, k in KINDS.items()],
)
def test_a_kind_passes_the_gate(name: str, checkpoint: Any, tmp_path: Path) -> None:
    kind = KINDS[name]
    expected = kind.write(tmp_path / "source", checkpoint)
    result = torch2mlx.convert(tmp_path / "source", tmp_path / "out", **kind.options)
    verification = result.manifest.verification
    assert verification["passed"]
    assert verification["audit"]["counts"].get("repacked", 0) == kind.repacked
    found = logits_in_mlx(tmp_path / "out")
    assert np.linalg.norm(found - expected) <= kind.within * np.linalg.norm(expected)
