"""GPT-2: `n_ctx` for `n_positions`, and tensors saved under `transformer.`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch2mlx.architectures.registry import Config, Rules
from torch2mlx.planning.expressions import Expr

__all__ = ["RULES"]


def _finish(config: Config, reference: Any) -> Config:
    return {"n_ctx": config["n_positions"], **config}


def _rename(state: Mapping[str, Expr], config: Mapping[str, Any]) -> dict[str, Expr]:
    return {
        name.removeprefix("transformer."): expr
        for name, expr in state.items()
        if not name.endswith((".attn.bias", ".attn.masked_bias", "lm_head.weight"))
    }


RULES = (Rules("gpt2", finish=_finish, rename=_rename),)
