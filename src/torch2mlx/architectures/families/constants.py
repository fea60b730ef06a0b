"""Families whose port asks for switches that transformers has settled.

Early checkpoints carried these keys for remote code; transformers' own class implements one
setting only and no longer saves them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch2mlx.architectures.registry import Config, Rules

__all__ = ["RULES"]

_SETTLED: Mapping[str, Mapping[str, Any]] = {
    "apertus": {"mlp_bias": False, "post_norm": False, "qk_norm": True},
    "glm_moe_dsa": {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "moe_layer_freq": 1},
    "solar_open": {"first_k_dense_replace": 0, "use_qk_norm": False, "partial_rotary_factor": 1.0},
}


def _finish(settled: Mapping[str, Any]) -> Callable[[Config, Any], Config]:
    return lambda config, reference: {**settled, **config}


RULES = tuple(Rules(name, finish=_finish(settled)) for name, settled in _SETTLED.items())
