"""OLMo hybrid: the norms of linear-attention layers have names of their own in transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch2mlx.architectures.registry import Rules
from torch2mlx.planning.expressions import Expr

__all__ = ["RULES"]


def _rename(state: Mapping[str, Expr], config: Mapping[str, Any]) -> dict[str, Expr]:
    return {
        name.replace(".attention_layer_norm.", ".input_layernorm.").replace(
            ".feedforward_layer_norm.", ".post_attention_layernorm."
        ): expr
        for name, expr in state.items()
    }


RULES = (Rules("olmo_hybrid", rename=_rename),)
