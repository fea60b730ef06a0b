"""Qwen 3 VL with experts.

transformers always renormalises the chosen experts' weights.  Its first release stored experts
as [experts, in, out], which the port expects; transformers 5 stores [experts, out, in].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch2mlx.architectures.registry import Config, Rules
from torch2mlx.planning.expressions import Expr, Transpose

__all__ = ["RULES"]


def _finish(config: Config, reference: Any) -> Config:
    return {"norm_topk_prob": True, **config}


def _rename(state: Mapping[str, Expr], config: Mapping[str, Any]) -> dict[str, Expr]:
    hidden = config["text_config"]["hidden_size"]
    inner = config["text_config"]["moe_intermediate_size"]
    layouts = {"gate_up_proj": (2 * inner, hidden), "down_proj": (hidden, inner)}
    fused = {
        name: layouts[name.rpartition(".")[2]]
        for name in state
        if name.endswith((".experts.gate_up_proj", ".experts.down_proj"))
    }
    # One of the two shapes may be square; all of them follow the same layout.
    new = fused and all(state[name].shape[1:] == shape for name, shape in fused.items())
    if not new:
        return dict(state)
    return {n: Transpose(e, (0, 2, 1)) if n in fused else e for n, e in state.items()}


RULES = (
    Rules("qwen3_vl_moe", rename=_rename),
    Rules("qwen3_vl_moe_text", finish=_finish),
)
