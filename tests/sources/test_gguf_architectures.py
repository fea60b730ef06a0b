"""Each GGUF architecture against the model it was made from and against transformers' loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf_files import write_gguf

from torch2mlx.errors import UnsupportedError
from torch2mlx.planning.regions import full
from torch2mlx.sources import open_checkpoint
from torch2mlx.sources.gguf.architectures import ARCHITECTURES

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 160,
    "max_position_embeddings": 128,
    "pad_token_id": None,
}
# transformers' GGUF loader takes the experts' widths from its defaults, so they are kept.
MOE = {"num_experts": 4, "num_experts_per_tok": 2}

# GGUF architecture → (config, whether transformers' GGUF loader knows it, further metadata)
CASES: dict[str, tuple[Any, bool, dict[str, int | float]]] = {
    "llama": (transformers.LlamaConfig(**SMALL, head_dim=8), True, {}),
    "llama+experts": (
        transformers.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2),
        False,
        {"expert_count": 4, "expert_used_count": 2},
    ),
    "qwen2": (transformers.Qwen2Config(**SMALL), True, {}),
    "qwen3": (transformers.Qwen3Config(**SMALL, head_dim=128), True, {"attention.key_length": 128}),
    "qwen2moe": (
        transformers.Qwen2MoeConfig(**SMALL, **MOE, norm_topk_prob=False),
        True,
        {"expert_count": 4, "expert_used_count": 2},
    ),
    "qwen3moe": (
        transformers.Qwen3MoeConfig(**SMALL, **MOE, head_dim=32, norm_topk_prob=True),
        True,
        {
            "expert_count": 4,
            "expert_used_count": 2,
            "expert_feed_forward_length": 768,
            "attention.key_length": 32,
        },
    ),
    "gemma2": (
        transformers.Gemma2Config(**SMALL, head_dim=8, query_pre_attn_scalar=8),
        True,
        {"attention.key_length": 8, "attention.sliding_window": 4096},
    ),
    "gemma3": (
        transformers.Gemma3TextConfig(**SMALL, head_dim=8, query_pre_attn_scalar=8),
        True,
        {"attention.key_length": 8, "attention.sliding_window": 4096},
    ),
    "phi3": (transformers.Phi3Config(**SMALL), True, {}),
    "starcoder2": (transformers.Starcoder2Config(**SMALL), True, {}),
    "stablelm": (
        transformers.StableLmConfig(**SMALL, partial_rotary_factor=0.25, use_qkv_bias=True),
        True,
        {"rope.dimension_count": 2},
    ),
}


def hub_state(model: Any) -> dict[str, np.ndarray]:
    """A model's tensors under the names that checkpoints on the hub use."""
    state: dict[str, np.ndarray] = {}
    mixtral = model.config.model_type == "mixtral"
    for name, tensor in model.state_dict().items():
        value = tensor.numpy()
        if name.endswith("experts.gate_up_proj"):
            half = value.shape[1] // 2
            parts = [("gate_proj", value[:, :half]), ("up_proj", value[:, half:])]
        elif name.endswith("experts.down_proj"):
            parts = [("down_proj", value)]
        else:
            if mixtral:
                name = name.replace(".mlp.gate.", ".block_sparse_moe.gate.")
            state[name] = value
            continue
        base = name.rsplit(".", 1)[0]
        for part, stacked in parts:
            if mixtral:
                part = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}[part]
            for expert, weight in enumerate(stacked):
                key = f"{base}.{expert}.{part}.weight"
                state[key.replace(".mlp.", ".block_sparse_moe.") if mixtral else key] = weight
    return state


def test_every_architecture_has_a_case() -> None:
    assert set(CASES) == set(ARCHITECTURES)


@pytest.mark.parametrize("case", CASES)
def test_names_values_and_config(case: str, tmp_path: Path) -> None:
    config, in_transformers, extra = CASES[case]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    path = tmp_path / "model.gguf"
    write_gguf(path, case.removesuffix("+experts"), model, extra)

    checkpoint = open_checkpoint(path)
    values = {k: e.read(full(e.shape), checkpoint.source) for k, e in checkpoint.state.items()}
    wanted = hub_state(model)
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight")
    assert set(values) == set(wanted)
    gemma = case.startswith("gemma")
    for name, value in wanted.items():
        if gemma and name.endswith("norm.weight"):
            value = (value + np.float32(1)) - np.float32(1)  # what adding 1 has rounded away
        np.testing.assert_array_equal(values[name], value, err_msg=name)

    # The config describes the same model: its logits are the original's.
    read = transformers.AutoConfig.for_model(**checkpoint.config)
    again = transformers.AutoModelForCausalLM.from_config(read).eval()
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    again.load_state_dict(model.state_dict())
    ids = torch.arange(12)[None]
    for setting in ("rms_norm_eps", "norm_epsilon", "layer_norm_eps"):
        if hasattr(config, setting):
            assert getattr(read, setting) in (1e-6, 1e-5)
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-2)

    if in_transformers:
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file=path.name, dtype=torch.float32
        )
        theirs = hub_state(loaded)
        for name, value in values.items():
            np.testing.assert_array_equal(value, theirs[name], err_msg=name)
        for name in ("num_hidden_layers", "hidden_size", "num_key_value_heads", "vocab_size"):
            assert checkpoint.config[name] == getattr(loaded.config, name)


def test_unknown_architecture_and_tensor_are_refused(tmp_path: Path) -> None:
    for arch, tensor, words in [
        ("rwkv7", "token_embd.weight", "rwkv7"),
        ("llama", "blk.0.attn_sinks.weight", "attn_sinks"),
    ]:
        path = tmp_path / f"{arch}.gguf"
        writer = gguf.GGUFWriter(path, arch)
        writer.add_block_count(1)
        writer.add_embedding_length(32)
        writer.add_head_count(2)
        writer.add_tensor("token_embd.weight", np.zeros((8, 32), np.float32))
        if tensor != "token_embd.weight":
            writer.add_tensor(tensor, np.zeros(32, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(UnsupportedError, match=words):
            open_checkpoint(path)
