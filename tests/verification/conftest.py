"""Tiny configs in the style of the Hub, and tiny checkpoints as transformers saves them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from torch2mlx.planning.expressions import Expr, Source
from torch2mlx.sources.safetensors import SafetensorsSource
from torch2mlx.verification.reference import build_reference, quiet
from torch2mlx.verification.twin import disturb


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk and the PyTorch model that it was saved from."""

    config: dict[str, Any]
    folder: Path
    source: SafetensorsSource
    state: Mapping[str, Expr]
    model: torch.nn.Module


@pytest.fixture
def save(tmp_path: Path) -> Callable[[Mapping[str, Any]], Saved]:
    """Save a random model of a config and open what was saved."""

    def build(config: Mapping[str, Any]) -> Saved:
        folder = tmp_path / f"checkpoint-{len(list(tmp_path.iterdir()))}"
        model = build_reference(config)
        disturb(model)
        with quiet():
            model.save_pretrained(folder)
        source = SafetensorsSource(sorted(folder.glob("*.safetensors")))
        state = {name: Source(name, i.dtype, i.shape) for name, i in source.tensors.items()}
        return Saved(dict(config), folder, source, state, model)

    return build


def llama(**changes: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 600,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }


@pytest.fixture
def llama_config() -> Callable[..., dict[str, Any]]:
    return llama


LLAMA3 = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
}
QWEN2 = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "use_sliding_window": False,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
MISTRAL = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 32000,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
GEMMA3 = {
    "model_type": "gemma3_text",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "num_hidden_layers": 26,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "vocab_size": 262144,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "max_position_embeddings": 32768,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "query_pre_attn_scalar": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}
PHI3 = {
    "model_type": "phi3",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0 + 0.02 * i for i in range(48)],
        "long_factor": [1.0 + 0.5 * i for i in range(48)],
    },
    "original_max_position_embeddings": 4096,
    "max_position_embeddings": 131072,
    "sliding_window": 262144,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "pad_token_id": 32000,
}
MIXTRAL = {
    **{k: v for k, v in MISTRAL.items() if k not in ("sliding_window", "head_dim")},
    "model_type": "mixtral",
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "sliding_window": None,
}
DEEPSEEK3 = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "first_k_dense_replace": 3,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "routed_scaling_factor": 2.5,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 129280,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
    },
    "max_position_embeddings": 163840,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
MAMBA2 = {
    "model_type": "mamba2",
    "hidden_size": 2560,
    "num_hidden_layers": 64,
    "num_heads": 80,
    "head_dim": 64,
    "state_size": 128,
    "expand": 2,
    "n_groups": 1,
    "conv_kernel": 4,
    "chunk_size": 256,
    "vocab_size": 50288,
    "layer_norm_epsilon": 1e-5,
    "use_bias": False,
    "use_conv_bias": True,
    "intermediate_size": 5120,
    "time_step_rank": 160,
    "time_step_limit": [0.0, float("inf")],
    "time_step_min": 0.001,
    "time_step_max": 0.1,
    "ssm_state_size": 128,
    "max_position_embeddings": 2056,
    "tie_word_embeddings": False,
}
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 1024,
    "n_ctx": 1024,
    "layer_norm_epsilon": 1e-5,
    "vocab_size": 50257,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}
HUB_CONFIGS = {
    "llama3": LLAMA3,
    "qwen2": QWEN2,
    "mistral": MISTRAL,
    "gemma3": GEMMA3,
    "phi3": PHI3,
    "mixtral": MIXTRAL,
    "deepseek3": DEEPSEEK3,
    "mamba2": MAMBA2,
    "gpt2": GPT2,
}


@pytest.fixture
def hub() -> Mapping[str, dict[str, Any]]:
    """Configs of published models, by a short name."""
    return HUB_CONFIGS
