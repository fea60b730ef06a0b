"""The same bytes as mlx_lm.convert for the same settings, and folders that mlx-lm loads as is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import torch2mlx

Weights = Mapping[str, tuple[str, list[int], bytes]]

_RECIPES = ("mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6")

# (checkpoint, its dtype, options of both converters)
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "bfloat16", {}),
    ("llama", "float16", {}),
    ("llama", "float32", {}),
    ("llama_tied", "bfloat16", {}),
    ("llama", "float32", {"dtype": "bfloat16"}),
    ("llama", "float32", {"dtype": "float16"}),
    ("llama", "bfloat16", {"dtype": "float32"}),
    ("llama", "float16", {"dtype": "bfloat16"}),
    ("phi3", "bfloat16", {}),
    ("gpt_neox", "float32", {}),
    ("mixtral", "bfloat16", {}),
    ("qwen3_moe", "float32", {"dtype": "float16"}),
    ("deepseek_v3", "bfloat16", {}),
    ("llama", "bfloat16", {"q_bits": 2, "q_group_size": 32}),
    ("llama", "float32", {"q_bits": 3, "q_group_size": 64}),
    ("llama", "float16", {"q_bits": 4, "q_group_size": 128}),
    ("llama_tied", "bfloat16", {"q_bits": 5, "q_group_size": 64}),
    ("llama_tied", "float32", {"q_bits": 6, "q_group_size": 32, "dtype": "bfloat16"}),
    ("phi3", "bfloat16", {"q_bits": 8, "q_group_size": 128}),
    ("phi3", "float16", {}),
    ("gpt_neox", "bfloat16", {"q_bits": 4, "q_group_size": 64}),
    # 272 is no multiple of the group: both leave such layers unquantized.
    ("llama_wide", "bfloat16", {"q_bits": 4, "q_group_size": 64}),
    ("llama", "bfloat16", {"q_mode": "mxfp4"}),
    ("llama", "float32", {"q_mode": "nvfp4"}),
    ("llama_tied", "float16", {"q_mode": "mxfp8"}),
    ("mixtral", "bfloat16", {"q_bits": 4, "q_group_size": 64}),
    ("mixtral", "bfloat16", {"q_mode": "mxfp4"}),
    ("qwen3_moe", "bfloat16", {"q_bits": 6, "q_group_size": 64}),
    ("deepseek_v3", "bfloat16", {"q_bits": 4, "q_group_size": 32}),
    *(("llama", "bfloat16", {"recipe": recipe, "q_group_size": 64}) for recipe in _RECIPES),
    ("qwen3_moe", "bfloat16", {"recipe": "mixed_4_6", "q_group_size": 64}),
    ("deepseek_v3", "bfloat16", {"recipe": "mixed_2_6", "q_group_size": 32}),
]


def _quantizes(options: Mapping[str, Any]) -> bool:
    return not set(options) <= {"dtype"}


def _convert_with_mlx_lm(source: Path, folder: Path, options: Mapping[str, Any]) -> None:
    from mlx_lm import convert

    theirs = {("quant_predicate" if k == "recipe" else k): v for k, v in options.items()}
    convert(str(source), str(folder), quantize=_quantizes(options), **theirs)


def _schemes(model: Any) -> dict[str, tuple[int, int, str]]:
    """Format of each quantized module, as mlx-lm understood config.json."""
    return {
        path: (module.bits, module.group_size, module.mode)
        for path, module in model.named_modules()
        if hasattr(module, "bits")
    }


def _id(value: Any) -> str | None:
    return "-".join(map(str, value.values())) or "plain" if isinstance(value, dict) else None


@pytest.mark.parametrize(("name", "dtype", "options"), CASES, ids=_id)
def test_same_bytes_as_mlx_lm(
    name: str,
    dtype: str,
    options: dict[str, Any],
    checkpoint: Callable[..., Path],
    read_weights: Callable[[Path], Weights],
    tmp_path: Path,
) -> None:
    from mlx_lm.utils import compute_bits_per_weight, load_model

    source = checkpoint(name, dtype, flat=True)
    _convert_with_mlx_lm(source, tmp_path / "theirs", options)
    quantize = {"quantize": True, "router": "same"} if _quantizes(options) else {}
    made = torch2mlx.convert(source, tmp_path / "ours", verify=False, **quantize, **options)

    theirs, ours = read_weights(tmp_path / "theirs"), read_weights(tmp_path / "ours")
    assert sorted(ours) == sorted(theirs)
    assert [n for n in theirs if ours[n] != theirs[n]] == []
    model, other = (load_model(tmp_path / who)[0] for who in ("theirs", "ours"))
    assert _schemes(other) == _schemes(model)
    assert made.manifest.weights["bits_per_weight"] == pytest.approx(
        compute_bits_per_weight(model), rel=1e-9
    )


@pytest.mark.parametrize("name", ["llama", "mixtral", "deepseek_v3"])
def test_mlx_lm_generates_what_pytorch_generates(
    name: str, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """From a config of transformers 5, whose rope settings mlx-lm would not find by itself."""
    import mlx.core as mx
    import torch
    from mlx_lm import load
    from mlx_lm.generate import generate_step
    from transformers import AutoModelForCausalLM

    source = checkpoint(name, "float32")
    torch2mlx.convert(source, tmp_path / "out")
    prompt = torch.randint(3, 288, (1, 24), generator=torch.Generator().manual_seed(1))
    reference = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    expected = reference.generate(prompt, max_new_tokens=16, do_sample=False, eos_token_id=None)
    model, _ = load(str(tmp_path / "out"))
    steps = generate_step(mx.array(prompt[0].numpy()), model, max_tokens=16)
    assert [int(token) for token, _ in steps] == expected[0, 24:].tolist()


def test_shards_stay_under_the_bound_and_load(
    checkpoint: Callable[..., Path], read_weights: Callable[[Path], Weights], tmp_path: Path
) -> None:
    from mlx_lm import load

    source = checkpoint("llama", shard_size="300KB")
    assert len(list(source.glob("model-*.safetensors"))) > 2
    made = torch2mlx.convert(source, tmp_path / "out", max_shard_size="200KB", verify=False)
    files = sorted((tmp_path / "out").glob("model*.safetensors"))
    assert len(files) > 3
    assert max(path.stat().st_size for path in files) <= 200_000
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(read_weights(tmp_path / "out"))
    assert set(index["weight_map"].values()) == {path.name for path in files}
    assert index["metadata"]["total_size"] == made.manifest.weights["total_size"]
    whole = torch2mlx.convert(source, tmp_path / "whole", verify=False)
    assert read_weights(whole.destination) == read_weights(tmp_path / "out")
    assert len(load(str(tmp_path / "out"))[0].layers) == 3


def test_overrides_reach_the_modules_that_mlx_lm_loads(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    from mlx.nn import Linear
    from mlx_lm import load

    torch2mlx.convert(
        checkpoint("llama"),
        tmp_path / "out",
        quantize=True,
        keep=["*.o_proj"],
        bits=["*.down_proj=6", "*.layers.0.*.down_proj=8:32", "*.gate_proj=mxfp8"],
        embedding="keep",
        head=6,
    )
    model = load(str(tmp_path / "out"))[0]
    scheme = _schemes(model).get
    assert scheme("model.layers.1.self_attn.q_proj") == (4, 64, "affine")
    assert scheme("model.layers.1.mlp.down_proj") == (6, 64, "affine")
    assert scheme("model.layers.0.mlp.down_proj") == (8, 32, "affine")
    assert scheme("model.layers.2.mlp.gate_proj") == (8, 32, "mxfp8")
    assert scheme("model.embed_tokens") is None
    assert scheme("lm_head") == (6, 64, "affine")
    assert type(model.layers[0].self_attn.o_proj) is Linear


@pytest.mark.parametrize(("router", "bits"), [("8bit", (8, 64)), ("same", (4, 64)), ("keep", None)])
def test_router_option(
    router: str,
    bits: tuple[int, int] | None,
    checkpoint: Callable[..., Path],
    tmp_path: Path,
) -> None:
    from mlx_lm import load

    options = {"quantize": True, "router": router, "verify": False}
    torch2mlx.convert(checkpoint("mixtral"), tmp_path / "out", **options)
    gate = load(str(tmp_path / "out"))[0].layers[0].block_sparse_moe.gate
    assert (getattr(gate, "bits", None) and (gate.bits, gate.group_size)) == bits
