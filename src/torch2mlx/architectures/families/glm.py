"""GLM-4: converted for mlx-lm's `glm4_moe`, since its `glm` rotates whole heads.

GLM rotates only the first part of each head (`partial_rotary_factor`, one half in all published
checkpoints).  The port of the later GLM-4.5 does so too, and is GLM-4's block where no layer has
experts.  It pairs rotated dimension i with i + r/2, GLM-4 2i with 2i + 1, so the rows of queries
and keys are put in that order; and it keeps the two halves of `gate_up_proj` apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch2mlx.architectures.registry import Config, Rules
from torch2mlx.planning.expressions import Concat, Expr, Reshape, Slice
from torch2mlx.planning.regions import full

__all__ = ["RULES"]

# Values that transformers accepts; no layer comes to use them.
_NO_EXPERTS = {
    "n_routed_experts": 1,
    "n_shared_experts": 1,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 1,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "use_qk_norm": False,
    "rope_scaling": None,
}


def _as_glm4_moe(config: Config) -> Config:
    return {**config, "model_type": "glm4_moe"}


def _finish(config: Config, reference: Any) -> Config:
    layers = config["num_hidden_layers"]
    return {"partial_rotary_factor": 0.5, **config, **_NO_EXPERTS, "first_k_dense_replace": layers}


def _pair_halves(expr: Expr, head_dim: int, rotated: int) -> Expr:
    """Rows of [heads × head_dim, …]: in each head the even rotated ones, the odd ones, the rest."""
    heads = expr.shape[0] // head_dim
    rest = full(expr.shape[1:])
    split = Reshape(expr, (heads, head_dim, *expr.shape[1:]))
    parts = (range(0, rotated, 2), range(1, rotated, 2), range(rotated, head_dim))
    kept = tuple(Slice(split, (range(heads), part, *rest)) for part in parts if part)
    return Reshape(Concat(kept, 1), expr.shape)


def _rename(state: Mapping[str, Expr], config: Mapping[str, Any]) -> dict[str, Expr]:
    head_dim = config["head_dim"]
    rotated = int(head_dim * config["partial_rotary_factor"])
    renamed: dict[str, Expr] = {}
    for name, expr in state.items():
        if ".self_attn.q_proj." in name or ".self_attn.k_proj." in name:
            renamed[name] = _pair_halves(expr, head_dim, rotated)
        elif name.endswith(".mlp.gate_up_proj.weight"):
            middle = expr.shape[0] // 2
            stem = name.removesuffix("gate_up_proj.weight")
            columns = full(expr.shape[1:])
            renamed[f"{stem}gate_proj.weight"] = Slice(expr, (range(middle), *columns))
            renamed[f"{stem}up_proj.weight"] = Slice(expr, (range(middle, expr.shape[0]), *columns))
        else:
            renamed[name] = expr
    # The port has no way to tie the head to the embedding.
    renamed.setdefault("lm_head.weight", renamed["model.embed_tokens.weight"])
    return renamed


RULES = (Rules("glm", reshape=_as_glm4_moe, finish=_finish, rename=_rename),)
