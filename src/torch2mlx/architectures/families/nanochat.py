"""nanochat: the port keeps the names of the original repository."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch2mlx.architectures.registry import Rules
from torch2mlx.planning.expressions import Expr

__all__ = ["RULES"]

_NAMES = (
    ("model.embed_tokens.", "transformer.wte."),
    ("model.layers.", "transformer.h."),
    (".self_attn.q_proj.", ".attn.c_q."),
    (".self_attn.k_proj.", ".attn.c_k."),
    (".self_attn.v_proj.", ".attn.c_v."),
    (".self_attn.o_proj.", ".attn.c_proj."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)


def _rename(state: Mapping[str, Expr], config: Mapping[str, Any]) -> dict[str, Expr]:
    renamed = {}
    for name, expr in state.items():
        for ours, theirs in _NAMES:
            name = name.replace(ours, theirs)
        renamed[name] = expr
    return renamed


RULES = (Rules("nanochat", rename=_rename),)
