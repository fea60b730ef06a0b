"""State space models and hybrids: layer kinds under their older names, and derived widths."""

from __future__ import annotations

from typing import Any

from torch2mlx.architectures.registry import Config, Rules

__all__ = ["RULES"]

# transformers 5 names every kind of layer by its attention; the port dates from before.
_GRANITE_KINDS = {"linear_attention": "mamba", "full_attention": "attention"}

# In place of no upper limit: JSON has no infinity, and no time step comes near it.
_NO_LIMIT = 3.0e38


def _granite(config: Config, reference: Any) -> Config:
    kinds = config.get("layer_types") or []
    return {**config, "layer_types": [_GRANITE_KINDS.get(kind, kind) for kind in kinds]}


def _mamba2(config: Config, reference: Any) -> Config:
    result = dict(config)
    if result.get("intermediate_size") is None:
        result["intermediate_size"] = result["num_heads"] * result["head_dim"]
    return result


def _nemotron_h(config: Config, reference: Any) -> Config:
    # transformers clamps time steps from below by `time_step_min` and reads no other limit.
    lowest = getattr(reference, "time_step_min", None)
    return config if lowest is None else {**config, "time_step_limit": [lowest, _NO_LIMIT]}


RULES = (
    Rules("granitemoehybrid", finish=_granite),
    Rules("mamba2", finish=_mamba2),
    Rules("nemotron_h", finish=_nemotron_h),
)
