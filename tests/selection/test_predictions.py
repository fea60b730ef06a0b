"""Predicted sizes and memory against what is written and what MLX then holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import torch2mlx
from torch2mlx.architectures.port import load_port
from torch2mlx.selection.memory import cache_bytes, prompt_bytes

_SHAPE = {
    "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 3,
    "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 1000,
    "max_position_embeddings": 1024, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
_MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "llama": ("llama", {}, 600),
    "phi3": ("phi3", {"intermediate_size": 1024}, 300),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, 256),
}


@pytest.mark.parametrize("name", list(_MODELS))
@pytest.mark.parametrize("strategy", [pytest.param("direct", marks=pytest.mark.slow), "4-bit"])
def test_size_and_memory_are_as_predicted(name: str, strategy: str, tmp_path: Path) -> None:
    import mlx.core as mx
    import torch
    import transformers
    from mlx_lm.generate import generate_step

    from torch2mlx.loading import load_language_model

    kind, options, context = _MODELS[name]
    config = transformers.models.auto.CONFIG_MAPPING[kind](**{**_SHAPE, **options})
    torch.manual_seed(0)
    source = tmp_path / "source"
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(source)
    planned = {s.name: s for s in torch2mlx.plan(source, context=context).strategies}[strategy]
    torch2mlx.convert(source, tmp_path / "out", verify=False, **planned.options)

    written = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert planned.nbytes == pytest.approx(written, rel=0.03)

    port = load_port(json.loads((source / "config.json").read_text()))
    # This runs in float32 on a CPU: numbers of four bytes, and attention without a fused kernel.
    caches = cache_bytes(port, context)
    assert caches is not None
    predicted = planned.nbytes + 2 * caches
    predicted += prompt_bytes(port.config, context, device="cpu", width=4)
    model, _ = load_language_model(tmp_path / "out", tokenizer=False)
    mx.clear_cache()
    mx.reset_peak_memory()
    for _ in generate_step(mx.zeros((context - 2,), mx.int32), model, max_tokens=2):
        pass
    assert predicted == pytest.approx(mx.get_peak_memory(), rel=0.10)
