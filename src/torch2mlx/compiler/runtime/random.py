"""Draws from distributions that `mx.random` lacks; `key` makes a draw repeatable, as there."""

from __future__ import annotations

import math

import mlx.core as mx

__all__ = [
    "alpha_dropout",
    "cauchy",
    "dropout",
    "dropout_with_mask",
    "exponential",
    "feature_dropout",
    "geometric",
    "multinomial",
    "normal",
]

Key = mx.array | None


def normal(mean: mx.array | float, deviation: mx.array | float, key: Key = None) -> mx.array:
    """Normal numbers, each with its own mean and standard deviation."""
    mean, deviation = mx.array(mean), mx.array(deviation)
    shape = mx.broadcast_shapes(mean.shape, deviation.shape)
    return mean + deviation * mx.random.normal(shape, key=key)


def dropout_with_mask(x: mx.array, p: float, key: Key = None) -> tuple[mx.array, mx.array]:
    """Zeros with probability p, the rest scaled by 1 / (1 - p); and which were kept."""
    kept = mx.random.bernoulli(1 - p, x.shape, key=key)
    scale = 1 / (1 - p) if p < 1 else 0.0
    return mx.where(kept, x * scale, 0), kept


def dropout(x: mx.array, p: float, key: Key = None) -> mx.array:
    """Zeros with probability p, the rest scaled by 1 / (1 - p)."""
    return dropout_with_mask(x, p, key)[0]


def feature_dropout(x: mx.array, p: float, key: Key = None) -> mx.array:
    """Dropout of whole channels: (N, C, ...)."""
    kept = mx.random.bernoulli(1 - p, (*x.shape[:2], *(1,) * (x.ndim - 2)), key=key)
    return mx.where(kept, x * (1 / (1 - p) if p < 1 else 0.0), 0)


def alpha_dropout(x: mx.array, p: float, features: bool = False, key: Key = None) -> mx.array:
    """Dropout to SELU's lowest value that keeps mean 0 and variance 1 (Klambauer et al., 2017).

    `features`: of whole channels, (N, C, ...).
    """
    if p == 1:
        return mx.zeros_like(x)
    shape = (*x.shape[:2], *(1,) * (x.ndim - 2)) if features else x.shape
    kept = mx.random.bernoulli(1 - p, shape, key=key)
    lowest = -1.7580993408473766
    scale = 1 / math.sqrt((1 - p) * (1 + p * lowest**2))
    return mx.where(kept, x, lowest) * scale - scale * lowest * p


def exponential(shape: tuple[int, ...], rate: float, dtype: mx.Dtype, key: Key = None) -> mx.array:
    """Exponential numbers with mean 1 / rate; never 0, so that their logarithm is finite."""
    tiny = float(mx.finfo(mx.float32).eps) / 2
    draws = mx.random.uniform(tiny, 1, shape, key=key)
    return (-mx.log(draws) / rate).astype(dtype)


def geometric(shape: tuple[int, ...], p: float, dtype: mx.Dtype, key: Key = None) -> mx.array:
    """How many trials it takes until one of probability p succeeds."""
    trials: mx.array = mx.ceil(exponential(shape, -math.log1p(-p), mx.float32, key))
    return trials.astype(dtype)


def cauchy(
    shape: tuple[int, ...], median: float, scale: float, dtype: mx.Dtype, key: Key = None
) -> mx.array:
    """Cauchy numbers."""
    draws = mx.random.uniform(-0.5, 0.5, shape, key=key)
    return (median + scale * mx.tan(math.pi * draws)).astype(dtype)


def multinomial(
    weights: mx.array, count: int, replacement: bool = False, key: Key = None
) -> mx.array:
    """`count` places of the last axis, drawn with the probability that the weights give."""
    logits = mx.log(weights)
    if replacement:
        shape = (*weights.shape[:-1], count)
        return mx.random.categorical(logits[..., None, :], shape=shape, key=key)
    # The largest of logits with Gumbel noise are a draw without replacement (Vieira, 2014).
    noisy = logits + mx.random.gumbel(logits.shape, key=key)
    return mx.argsort(-noisy, axis=-1)[..., :count]
