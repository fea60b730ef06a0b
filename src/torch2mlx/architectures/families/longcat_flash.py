"""LongCat-Flash: switches that transformers has settled, and experts that compute nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch2mlx.architectures.registry import Config, Rules
from torch2mlx.planning.expressions import Expr

__all__ = ["RULES"]

_SETTLED = {
    "attention_method": "MLA",
    "zero_expert_type": "identity",
    "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
}


def _finish(config: Config, reference: Any) -> Config:
    return {**_SETTLED, **config}


def _idle(name: str, config: Mapping[str, Any]) -> bool:
    _, separator, rest = name.partition(".mlp.experts.")
    index = rest.partition(".")[0]
    return bool(separator) and index.isdigit() and int(index) >= config["n_routed_experts"]


def _rename(state: Mapping[str, Expr], config: Mapping[str, Any]) -> dict[str, Expr]:
    # transformers 5 allots weights to the identity experts too, and saves what it never applies.
    return {name: expr for name, expr in state.items() if not _idle(name, config)}


def _dropped(name: str, config: Mapping[str, Any]) -> str | None:
    return "belongs to an identity expert, which computes nothing" if _idle(name, config) else None


RULES = (Rules("longcat_flash", finish=_finish, rename=_rename, dropped=_dropped),)
