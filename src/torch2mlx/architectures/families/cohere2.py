"""Cohere 2: the port knows windows as a pattern length."""

from __future__ import annotations

from typing import Any

from torch2mlx.architectures.layer_pattern import window_period
from torch2mlx.architectures.registry import Config, Rules

__all__ = ["RULES"]


def _pattern(config: Config, reference: Any) -> Config:
    period = window_period(getattr(reference, "layer_types", None) or ())
    return {**config, "sliding_window_pattern": period} if period else config


RULES = (Rules("cohere2", finish=_pattern),)
