"""Layer kinds as a period, which is how older configs and ports write `layer_types`."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["window_period"]


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
