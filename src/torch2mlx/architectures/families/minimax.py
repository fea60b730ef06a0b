"""MiniMax: mlx-lm's `minimax` is MiniMax-M2, transformers' is MiniMax-Text-01."""

from __future__ import annotations

from typing import Any

from torch2mlx.architectures.registry import Config, Rules
from torch2mlx.errors import UnsupportedError

__all__ = ["RULES"]


def _refuse_text_01(config: Config) -> Config:
    if any("M2" in name for name in config.get("architectures") or ()):
        return config
    raise UnsupportedError(
        "config.json: model_type 'minimax' is MiniMax-Text-01 (lightning attention); mlx-lm's port "
        "of that name is another model, MiniMax-M2, so there is none for this checkpoint"
    )


def _finish(config: Config, reference: Any) -> Config:
    result = {"shared_intermediate_size": 0, **config}
    factor = (getattr(reference, "rope_parameters", None) or {}).get("partial_rotary_factor")
    if result.get("rotary_dim") is None and factor is not None:
        result["rotary_dim"] = int(result["head_dim"] * factor)
    return result


RULES = (
    Rules("minimax", reshape=_refuse_text_01, finish=_finish),
    Rules("minimax_m2", finish=_finish),
)
