"""Kimi Linear: linear-attention settings in a dict of their own, layers counted from one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch2mlx.architectures.registry import Config, Rules
from torch2mlx.planning.expressions import Expr

__all__ = ["RULES"]


def _finish(config: Config, reference: Any) -> Config:
    kinds = getattr(reference, "layer_types", None)
    # The port has no rotary embedding, yet asks for its base.
    result = {"rope_theta": 10000.0, **config}
    if kinds is None:
        return result
    mlps = reference.mlp_layer_types
    result.setdefault(
        "linear_attn_config",
        {
            "kda_layers": [i for i, k in enumerate(kinds, 1) if k == "linear_attention"],
            "full_attn_layers": [i for i, k in enumerate(kinds, 1) if k == "full_attention"],
            "num_heads": reference.linear_num_heads,
            "head_dim": reference.linear_head_dim,
            "short_conv_kernel_size": reference.linear_conv_kernel_dim,
        },
    )
    dense = mlps.index("sparse") if "sparse" in mlps else len(mlps)
    result.setdefault("first_k_dense_replace", dense)
    return result


def _rename(state: Mapping[str, Expr], config: Mapping[str, Any]) -> dict[str, Expr]:
    # Feed-forward layers without experts are saved under the experts' name too.
    dense = tuple(f".block_sparse_moe.{part}_proj.weight" for part in ("gate", "up", "down"))
    return {
        name.replace(".block_sparse_moe.", ".mlp.") if name.endswith(dense) else name: expr
        for name, expr in state.items()
    }


RULES = (Rules("kimi_linear", finish=_finish, rename=_rename),)
