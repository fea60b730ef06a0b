"""EXAONE 4: windows as a string of L and G; its MoE variant: a flag a layer."""

from __future__ import annotations

from typing import Any

from torch2mlx.architectures.registry import Config, Rules

__all__ = ["RULES"]


def _dense(config: Config, reference: Any) -> Config:
    result = dict(config)
    if result.get("head_dim") is None:
        result["head_dim"] = result["hidden_size"] // result["num_attention_heads"]
    kinds = getattr(reference, "layer_types", None)
    if kinds and "sliding_attention" in kinds:
        result["sliding_window_pattern"] = "".join(
            "L" if kind == "sliding_attention" else "G" for kind in kinds
        )
    elif kinds:
        result["sliding_window_pattern"] = None
    return result


def _experts(config: Config, reference: Any) -> Config:
    kinds = getattr(reference, "mlp_layer_types", None)
    if kinds is None or "is_moe_layer" in config:
        return config
    return {**config, "is_moe_layer": [kind == "sparse" for kind in kinds]}


RULES = (Rules("exaone4", finish=_dense), Rules("exaone_moe", finish=_experts))
