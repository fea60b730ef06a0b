"""GGUF architectures: their Hugging Face config and tensor names, undoing what llama.cpp changes.

Facts: which metadata key is which config key, and which tensors llama.cpp's converter rewrites
(transformers, modeling_gguf_pytorch_utils.py and integrations/ggml.py; llama.cpp,
convert_hf_to_gguf.py).  Only architectures whose mapping is exact are listed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ARCHITECTURES", "GGUFArchitecture"]

Config = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_QK_NORM = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{expert}.gate_proj",
    "ffn_up_exps": "mlp.experts.{expert}.up_proj",
    "ffn_down_exps": "mlp.experts.{expert}.down_proj",
}
_SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_DENSE = _NORMS | _ATTENTION | _MLP

_CONFIG = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
_HEAD_DIM = {"attention.key_length": "head_dim"}
_MOE_CONFIG = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
_LAYER_NORM = "attention.layer_norm_epsilon"


@dataclass(frozen=True)
class GGUFArchitecture:
    """How one architecture of GGUF reads as a Hugging Face model.

    Attributes:
        model_type, class_name: of the Hugging Face model.
        blocks: tensor of a block → module of a layer; "{expert}" marks a stack over experts.
        config: metadata key after the architecture's name → config key.
        fixed: config values that the architecture implies.
        top: tensors outside of blocks → modules.
        interleaved: q and k rows hold rotary pairs side by side, and must be put back.
        shifted_norms: norm weights are stored with 1 added.
        derive: (metadata after the name, config, shapes) → further config values.
    """

    model_type: str
    class_name: str
    blocks: Mapping[str, str]
    config: Mapping[str, str] = field(default_factory=lambda: _CONFIG | _HEAD_DIM)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    top: Mapping[str, str] = field(default_factory=lambda: _TOP)
    interleaved: bool = False
    shifted_norms: bool = False
    derive: Callable[[Config, Config, Shapes], Config] | None = None


def _rotary_head_dim(metadata: Config, config: Config, shapes: Shapes) -> Config:
    if "head_dim" in config or "rope.dimension_count" not in metadata:
        return {}
    return {"head_dim": metadata["rope.dimension_count"]}


def _llama(metadata: Config, config: Config, shapes: Shapes) -> Config:
    derived: Config = {
        "attention_bias": "blk.0.attn_q.bias" in shapes,
        "mlp_bias": "blk.0.ffn_up.bias" in shapes,
    }
    return derived | _rotary_head_dim(metadata, config, shapes)


def _qwen2(metadata: Config, config: Config, shapes: Shapes) -> Config:
    return {"use_sliding_window": False}


def _experts(metadata: Config, config: Config, shapes: Shapes) -> Config:
    """Widths of experts from their tensors, which older files do not state."""
    derived: Config = {}
    for key, tensor, axis in (
        ("moe_intermediate_size", "blk.0.ffn_up_exps.weight", 1),
        ("shared_expert_intermediate_size", "blk.0.ffn_up_shexp.weight", 0),
    ):
        if tensor in shapes:
            derived[key] = shapes[tensor][axis]
    return derived


def _gemma(large: int) -> Callable[[Config, Config, Shapes], Config]:
    def derive(metadata: Config, config: Config, shapes: Shapes) -> Config:
        # The 27B models alone scale queries by hidden_size / heads; llama.cpp knows them by depth.
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        is_large = config["num_hidden_layers"] == large
        head_dim = config.setdefault("head_dim", hidden // heads)
        return {"query_pre_attn_scalar": hidden // heads if is_large else head_dim}

    return derive


def _partial_rotary(metadata: Config, config: Config, shapes: Shapes) -> Config:
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    rotary = metadata.get("rope.dimension_count", head_dim)
    return {} if rotary == head_dim else {"partial_rotary_factor": rotary / head_dim}


def _stablelm(metadata: Config, config: Config, shapes: Shapes) -> Config:
    return _partial_rotary(metadata, config, shapes) | {
        "use_qkv_bias": "blk.0.attn_q.bias" in shapes,
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in shapes,
    }


def _without(mapping: Mapping[str, str], *keys: str) -> dict[str, str]:
    return {key: value for key, value in mapping.items() if key not in keys}


_RMS = "attention.layer_norm_rms_epsilon"
_GEMMA_BLOCKS = (
    _ATTENTION
    | _MLP
    | {
        "attn_norm": "input_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    }
)
_GEMMA_CONFIG = _CONFIG | _HEAD_DIM | {"attention.sliding_window": "sliding_window"}

ARCHITECTURES: dict[str, GGUFArchitecture] = {
    "llama": GGUFArchitecture("llama", "LlamaForCausalLM", _DENSE, interleaved=True, derive=_llama),
    # llama.cpp's name for Mixtral is "llama" with experts.
    "llama+experts": GGUFArchitecture(
        "mixtral",
        "MixtralForCausalLM",
        _NORMS
        | _ATTENTION
        | {
            "ffn_gate_inp": "block_sparse_moe.gate",
            "ffn_gate_exps": "block_sparse_moe.experts.{expert}.w1",
            "ffn_down_exps": "block_sparse_moe.experts.{expert}.w2",
            "ffn_up_exps": "block_sparse_moe.experts.{expert}.w3",
        },
        config=_CONFIG
        | _HEAD_DIM
        | {
            "expert_count": "num_local_experts",
            "expert_used_count": "num_experts_per_tok",
        },
        interleaved=True,
        derive=_rotary_head_dim,
    ),
    "qwen2": GGUFArchitecture("qwen2", "Qwen2ForCausalLM", _DENSE, derive=_qwen2),
    "qwen3": GGUFArchitecture("qwen3", "Qwen3ForCausalLM", _DENSE | _QK_NORM, derive=_qwen2),
    "qwen2moe": GGUFArchitecture(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        _NORMS | _ATTENTION | _EXPERTS | _SHARED_EXPERT,
        config=_CONFIG | _MOE_CONFIG,
        fixed={"norm_topk_prob": False, "decoder_sparse_step": 1, "mlp_only_layers": []},
        derive=_experts,
    ),
    "qwen3moe": GGUFArchitecture(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        _NORMS | _ATTENTION | _QK_NORM | _EXPERTS,
        config=_CONFIG | _HEAD_DIM | _MOE_CONFIG,
        fixed={"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
        derive=_experts,
    ),
    "gemma2": GGUFArchitecture(
        "gemma2",
        "Gemma2ForCausalLM",
        _GEMMA_BLOCKS,
        config=_GEMMA_CONFIG
        | {
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        fixed={"hidden_activation": "gelu_pytorch_tanh"},
        shifted_norms=True,
        derive=_gemma(46),
    ),
    "gemma3": GGUFArchitecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        _GEMMA_BLOCKS | _QK_NORM,
        config=_GEMMA_CONFIG,
        fixed={
            "hidden_activation": "gelu_pytorch_tanh",
            "rope_local_base_freq": 10000.0,
            "sliding_window_pattern": 6,
        },
        shifted_norms=True,
        derive=_gemma(62),
    ),
    "phi3": GGUFArchitecture(
        "phi3",
        "Phi3ForCausalLM",
        _NORMS
        | {
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        },
        config=_CONFIG
        | {
            "attention.sliding_window": "sliding_window",
            "rope.scaling.original_context_length": "original_max_position_embeddings",
        },
        derive=_partial_rotary,
    ),
    "starcoder2": GGUFArchitecture(
        "starcoder2",
        "Starcoder2ForCausalLM",
        _NORMS | _ATTENTION | {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
        config=_without(_CONFIG, _RMS) | {_LAYER_NORM: "norm_epsilon"},
        fixed={"hidden_act": "gelu_pytorch_tanh", "use_bias": True},
    ),
    "stablelm": GGUFArchitecture(
        "stablelm",
        "StableLmForCausalLM",
        _DENSE,
        config=_without(_CONFIG, _RMS) | {_LAYER_NORM: "layer_norm_eps"},
        derive=_stablelm,
    ),
}
