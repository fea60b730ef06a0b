"""gemma 3 and Cohere 2: ports that know `layer_types` as the length of a repeating pattern."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch2mlx.architectures.registry import Config, Rules

__all__ = ["RULES", "window_period"]


def window_period(layer_types: Sequence[str]) -> int | None:
    """The p for which exactly every p-th layer attends to everything and the rest to a window.

    Returns:
        The period, or None where the layers do not follow one.  A model without any full layer
        has every period longer than itself; the answer is then None too.
    """
    full = [i for i, kind in enumerate(layer_types, start=1) if kind == "full_attention"]
    if not full:
        return None
    period = full[0]
    return period if full == list(range(period, len(layer_types) + 1, period)) else None


def _finish(config: Config, reference: Any) -> Config:
    period = window_period(getattr(reference, "layer_types", None) or ())
    return {**config, "sliding_window_pattern": period} if period else config


RULES = (Rules("gemma3_text", finish=_finish), Rules("cohere2", finish=_finish))
