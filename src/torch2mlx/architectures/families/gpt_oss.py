"""gpt-oss with experts in bf16, as fine-tuned checkpoints have them.

transformers interleaves gate and up columns: [experts, hidden, 2 × inner] and a bias [experts,
2 × inner].  The port holds them apart as [experts, inner, hidden].  The published MXFP4 blocks
are left to the port's own loader.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch2mlx.architectures.registry import Rules
from torch2mlx.planning.expressions import Expr, Slice, Transpose
from torch2mlx.planning.regions import full

__all__ = ["RULES"]


def _every_other(expr: Expr, first: int) -> Expr:
    """Entries first, first + 2, … of the last axis."""
    shape = expr.shape
    return Slice(expr, (*full(shape[:-1]), range(first, shape[-1], 2)))


def _rename(state: Mapping[str, Expr], config: Mapping[str, Any]) -> dict[str, Expr]:
    if not any(name.endswith("experts.gate_up_proj") for name in state):
        return dict(state)
    renamed: dict[str, Expr] = {}
    for name, expr in state.items():
        stem, _, leaf = name.rpartition(".")
        if leaf == "gate_up_proj":
            for first, part in enumerate(("gate_proj", "up_proj")):
                half = _every_other(expr, first)
                renamed[f"{stem}.{part}.weight"] = Transpose(half, (0, 2, 1))
        elif leaf == "gate_up_proj_bias":
            for first, part in enumerate(("gate_proj", "up_proj")):
                renamed[f"{stem}.{part}.bias"] = _every_other(expr, first)
        elif leaf == "down_proj":
            renamed[f"{stem}.down_proj.weight"] = Transpose(expr, (0, 2, 1))
        elif leaf == "down_proj_bias":
            renamed[f"{stem}.down_proj.bias"] = expr
        else:
            renamed[name] = expr
    return renamed


RULES = (Rules("gpt_oss", rename=_rename),)
