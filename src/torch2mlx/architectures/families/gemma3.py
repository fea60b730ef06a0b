"""gemma 3: one pattern length for `layer_types`, and the vocabulary repeated at top level."""

from __future__ import annotations

from typing import Any

from torch2mlx.architectures.layer_pattern import window_period
from torch2mlx.architectures.registry import Config, Rules

__all__ = ["RULES"]


def _pattern(config: Config, reference: Any) -> Config:
    period = window_period(getattr(reference, "layer_types", None) or ())
    return {**config, "sliding_window_pattern": period} if period else config


def _vocabulary(config: Config, reference: Any) -> Config:
    return {**config, "vocab_size": config["text_config"]["vocab_size"]}


RULES = (Rules("gemma3_text", finish=_pattern), Rules("gemma3", finish=_vocabulary))
