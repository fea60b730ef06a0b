"""Llama 4 saved as a text model: mlx-lm's `llama4` port holds it nested.

mlx-lm's own `llama4_text` is for models without experts; those need no rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch2mlx.architectures.registry import Config, Rules
from torch2mlx.planning.expressions import Expr

__all__ = ["RULES"]


def _nest(config: Config) -> Config:
    if config.get("moe_layers") == [] or not config.get("interleave_moe_layer_step", 1):
        return config
    return {**config, "model_type": "llama4", "text_config": dict(config)}


def _rename(state: Mapping[str, Expr], config: Mapping[str, Any]) -> dict[str, Expr]:
    if config["model_type"] != "llama4":
        return dict(state)
    return {f"language_model.{name}": expr for name, expr in state.items()}


RULES = (Rules("llama4_text", reshape=_nest, rename=_rename),)
