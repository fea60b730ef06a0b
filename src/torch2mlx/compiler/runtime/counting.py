"""Membership and histograms."""

from __future__ import annotations

import mlx.core as mx

__all__ = ["histogram", "is_member"]


def is_member(x: mx.array, members: mx.array) -> mx.array:
    """Whether each element of `x` occurs among `members`."""
    return mx.any(x[..., None] == members.reshape(-1), axis=-1)


def histogram(x: mx.array, bins: int, low: float, high: float) -> mx.array:
    """How many elements fall into each of `bins` equal parts of [low, high].

    Equal limits stand for the extremes of `x`; elements outside and NaN are not counted.
    """
    x = x.reshape(-1)
    if x.size == 0:
        return mx.zeros((bins,), x.dtype)
    least, most = mx.array(low, x.dtype), mx.array(high, x.dtype)
    if low == high:
        least, most = mx.min(x), mx.max(x)
    same = least == most
    least, most = mx.where(same, least - 1, least), mx.where(same, most + 1, most)
    inside = (x >= least) & (x <= most)
    places = mx.where(inside, (x - least) * bins / (most - least), 0).astype(mx.int32)
    counts = mx.zeros((bins,), mx.int32)
    return counts.at[mx.minimum(places, bins - 1)].add(inside.astype(mx.int32)).astype(x.dtype)
