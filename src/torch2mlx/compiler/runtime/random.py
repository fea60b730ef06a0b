"""Draws from distributions with parameters in arrays."""

from __future__ import annotations

import mlx.core as mx

__all__ = ["dropout", "dropout_with_mask", "normal"]


def normal(
    mean: mx.array | float, deviation: mx.array | float, key: mx.array | None = None
) -> mx.array:
    """Normal numbers, each with its own mean and standard deviation."""
    mean, deviation = mx.array(mean), mx.array(deviation)
    shape = mx.broadcast_shapes(mean.shape, deviation.shape)
    return mean + deviation * mx.random.normal(shape, key=key)


def dropout_with_mask(
    x: mx.array, p: float, key: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """Zeros with probability p, the rest scaled by 1 / (1 - p); and which were kept."""
    kept = mx.random.bernoulli(1 - p, x.shape, key=key)
    scale = 1 / (1 - p) if p < 1 else 0.0
    return mx.where(kept, x * scale, 0), kept


def dropout(x: mx.array, p: float, key: mx.array | None = None) -> mx.array:
    """Zeros with probability p, the rest scaled by 1 / (1 - p)."""
    return dropout_with_mask(x, p, key)[0]
