"""Qwen 3.5 saved as a text model: the port reads it nested, as the multimodal model is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch2mlx.architectures.registry import Config, Rules
from torch2mlx.planning.expressions import Expr, stack

__all__ = ["RULES"]


def _nest_dense(config: Config) -> Config:
    return {**config, "model_type": "qwen3_5", "text_config": dict(config)}


def _nest_experts(config: Config) -> Config:
    return {**config, "model_type": "qwen3_5_moe", "text_config": dict(config)}


def _stack_experts(state: Mapping[str, Expr], config: Mapping[str, Any]) -> dict[str, Expr]:
    """Experts saved one by one, which the port expects stacked."""
    renamed = dict(state)
    count = config["text_config"]["num_experts"]
    for name in state:
        stem, separator, part = name.partition(".mlp.experts.0.")
        if separator:
            experts = [renamed.pop(f"{stem}.mlp.experts.{i}.{part}") for i in range(count)]
            renamed[f"{stem}.mlp.switch_mlp.{part}"] = stack(experts)
    return renamed


RULES = (
    Rules("qwen3_5_text", reshape=_nest_dense),
    Rules("qwen3_5_moe_text", reshape=_nest_experts, rename=_stack_experts),
)
