"""How far vectors are from each other."""

from __future__ import annotations

import mlx.core as mx

__all__ = ["condensed_distances", "cosine_similarity", "minkowski_norm", "pairwise_distances"]


def minkowski_norm(x: mx.array, p: float, keepdims: bool = False) -> mx.array:
    """The p-norm over the last axis; p = 0 counts what is not zero."""
    x = mx.abs(x)
    if p == 0:
        return mx.sum(x != 0, axis=-1, keepdims=keepdims).astype(x.dtype)
    if p == 1:
        return mx.sum(x, axis=-1, keepdims=keepdims)
    if p == 2:
        return mx.sqrt(mx.sum(mx.square(x), axis=-1, keepdims=keepdims))
    if p == float("inf"):
        return mx.max(x, axis=-1, keepdims=keepdims)
    if p == -float("inf"):
        return mx.min(x, axis=-1, keepdims=keepdims)
    return mx.power(mx.sum(mx.power(x, p), axis=-1, keepdims=keepdims), 1 / p)


def pairwise_distances(x: mx.array, y: mx.array, p: float = 2.0) -> mx.array:
    """(..., P, M) and (..., R, M) → (..., P, R)."""
    if x.shape[-1] == 0:
        batch = mx.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        return mx.zeros((*batch, x.shape[-2], y.shape[-2]), x.dtype)
    return minkowski_norm(mx.expand_dims(x, -2) - mx.expand_dims(y, -3), p)


def condensed_distances(x: mx.array, p: float = 2.0) -> mx.array:
    """The distances between rows i < j of (N, M), row after row."""
    count = x.shape[0]
    rows = [i for i in range(count) for _ in range(i + 1, count)]
    columns = [j for i in range(count) for j in range(i + 1, count)]
    if not rows:
        return mx.zeros((0,), x.dtype)
    return minkowski_norm(x[mx.array(rows)] - x[mx.array(columns)], p)


def cosine_similarity(x: mx.array, y: mx.array, axis: int, eps: float) -> mx.array:
    """The cosine of the angle between vectors along an axis; lengths are at least `eps`."""
    if x.ndim == 0:
        x, y = x[None], y[None]

    def unit(v: mx.array) -> mx.array:
        length = mx.sqrt(mx.sum(mx.square(v), axis=axis, keepdims=True))
        return v / mx.maximum(length, eps)

    return mx.sum(unit(x) * unit(y), axis=axis)
