"""What a case of the zoo is, and the settings that many of them share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "BASE",
    "DEEPSEEK",
    "EXPERTS",
    "IDS",
    "LATENT",
    "LINEAR_ATTENTION",
    "LLAMA3",
    "LONGROPE",
    "SLIDING",
    "VISION",
    "VOCABULARY",
    "YARN",
    "Case",
    "case",
    "nested_case",
    "rope",
    "rotary_case",
    "text",
]

VOCABULARY = 160


@dataclass(frozen=True)
class Case:
    """One tiny checkpoint.

    Attributes:
        name: unique; the model type with what is special about it.
        model_type: of the configuration in transformers.
        options: arguments of the configuration class.
        auto: the transformers Auto class that builds the model.
    """

    name: str
    model_type: str
    options: Mapping[str, Any] = field(default_factory=dict)
    auto: str = "AutoModelForCausalLM"


BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}


def rope(theta: float = 3000.0, **scaling: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, **scaling}


def rotary_case(model_type: str, name: str | None = None, **options: Any) -> Case:
    return case(model_type, name, **{"rope_parameters": rope(), **options})


def case(
    model_type: str,
    name: str | None = None,
    *,
    auto: str = "AutoModelForCausalLM",
    **options: Any,
) -> Case:
    merged = {k: v for k, v in {**BASE, **options}.items() if v is not ...}
    return Case(name or model_type, model_type, merged, auto)


SLIDING = ["sliding_attention", "sliding_attention", "full_attention"]
LLAMA3 = rope(
    3000.0,
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
YARN = rope(
    3000.0,
    rope_type="yarn",
    factor=4.0,
    beta_fast=32.0,
    beta_slow=1.0,
    original_max_position_embeddings=32,
)
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
DEEPSEEK = {
    **LATENT,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}
LONGROPE = rope(
    3000.0,
    rope_type="longrope",
    short_factor=[1.0 + 0.1 * i for i in range(8)],
    long_factor=[1.5 + 0.4 * i for i in range(8)],
    original_max_position_embeddings=32,
)
LINEAR_ATTENTION = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def text(**options: Any) -> dict[str, Any]:
    return {k: v for k, v in {**BASE, **options}.items() if v is not ...}


def nested_case(
    model_type: str, text: dict[str, Any], name: str | None = None, **options: Any
) -> Case:
    return Case(
        name or model_type,
        model_type,
        {"text_config": text, **options},
        "AutoModelForImageTextToText",
    )
