"""Reductions of PyTorch that MLX lacks or defines otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

__all__ = [
    "cummax_with_indices",
    "cummin_with_indices",
    "differences",
    "huber_loss",
    "log_softmax",
    "logsumexp",
    "max_with_indices",
    "mean_of_numbers",
    "min_with_indices",
    "softmax",
    "standard_deviation",
    "sum_of_numbers",
    "variance",
    "vector_norm",
]

Axes = int | Sequence[int] | None


def max_with_indices(x: mx.array, axis: int, keepdims: bool = False) -> tuple[mx.array, mx.array]:
    """The maximum along an axis and where it is first."""
    return mx.max(x, axis, keepdims=keepdims), mx.argmax(x, axis, keepdims=keepdims)


def min_with_indices(x: mx.array, axis: int, keepdims: bool = False) -> tuple[mx.array, mx.array]:
    """The minimum along an axis and where it is first."""
    return mx.min(x, axis, keepdims=keepdims), mx.argmin(x, axis, keepdims=keepdims)


def _last_index(reached: mx.array, axis: int) -> mx.array:
    """For each position the last one before it, or itself, where `reached` holds."""
    shape = [1] * reached.ndim
    shape[axis] = reached.shape[axis]
    positions = mx.reshape(mx.arange(reached.shape[axis]), shape)
    return mx.cummax(mx.where(reached, positions, 0), axis=axis)


def cummax_with_indices(x: mx.array, axis: int) -> tuple[mx.array, mx.array]:
    """The running maximum and where it was last reached; NaN stays."""
    seen = mx.cummax(mx.isnan(x).astype(mx.int32), axis=axis) > 0
    values = mx.cummax(mx.where(mx.isnan(x), -mx.inf, x) if _floating(x) else x, axis=axis)
    reached = mx.where(seen, mx.isnan(x), x == values)
    values = mx.where(seen, mx.nan, values) if _floating(x) else values
    return values, _last_index(reached, axis)


def cummin_with_indices(x: mx.array, axis: int) -> tuple[mx.array, mx.array]:
    """The running minimum and where it was last reached; NaN stays."""
    seen = mx.cummax(mx.isnan(x).astype(mx.int32), axis=axis) > 0
    values = mx.cummin(mx.where(mx.isnan(x), mx.inf, x) if _floating(x) else x, axis=axis)
    reached = mx.where(seen, mx.isnan(x), x == values)
    values = mx.where(seen, mx.nan, values) if _floating(x) else values
    return values, _last_index(reached, axis)


def _floating(x: mx.array) -> bool:
    return mx.issubdtype(x.dtype, mx.floating)


def differences(x: mx.array, axis: int) -> mx.array:
    """Each element less the one before it; of bools: whether they differ."""
    x = mx.moveaxis(x, axis, 0)
    result = x[1:] != x[:-1] if x.dtype == mx.bool_ else x[1:] - x[:-1]
    return mx.moveaxis(result, 0, axis)


def softmax(x: mx.array, axis: int) -> mx.array:
    """Softmax, in single precision inside."""
    return mx.softmax(x, axis=axis, precise=True)


def log_softmax(x: mx.array, axis: int) -> mx.array:
    """The logarithm of softmax, in single precision inside."""
    if x.size == 0:
        return x
    y = x.astype(mx.float32)
    return (y - mx.logsumexp(y, axis=axis, keepdims=True)).astype(x.dtype)


def logsumexp(x: mx.array, axis: Axes = None, keepdims: bool = False) -> mx.array:
    """Log Σ exp(x), in single precision inside."""
    return mx.logsumexp(x.astype(mx.float32), axis=axis, keepdims=keepdims).astype(x.dtype)


def variance(
    x: mx.array, axis: Axes = None, keepdims: bool = False, correction: float = 1
) -> mx.array:
    """Σ (x - mean)² / max(0, n - correction), in single precision inside."""
    if x.size == 0:  # MLX 0.32 can take forever over the difference
        return mx.full(mx.sum(x, axis=axis, keepdims=keepdims).shape, mx.nan, x.dtype)
    y = x.astype(mx.float32)
    y = y - mx.mean(y, axis=axis, keepdims=True)
    squares = mx.sum(y * y, axis=axis, keepdims=keepdims)
    count = x.size // max(squares.size, 1)
    return (squares / mx.array(max(0.0, count - correction))).astype(x.dtype)


def standard_deviation(
    x: mx.array, axis: Axes = None, keepdims: bool = False, correction: float = 1
) -> mx.array:
    """The square root of the variance."""
    y = x.astype(mx.float32)
    return mx.sqrt(variance(y, axis, keepdims, correction)).astype(x.dtype)


def sum_of_numbers(x: mx.array, axis: Axes = None, keepdims: bool = False) -> mx.array:
    """The sum without NaN."""
    return mx.sum(mx.where(mx.isnan(x), 0, x), axis=axis, keepdims=keepdims)


def mean_of_numbers(x: mx.array, axis: Axes = None, keepdims: bool = False) -> mx.array:
    """The mean without NaN."""
    count = mx.sum(~mx.isnan(x), axis=axis, keepdims=keepdims)
    return sum_of_numbers(x, axis, keepdims) / count.astype(x.dtype)


def vector_norm(
    x: mx.array, order: float = 2.0, axis: Axes = None, keepdims: bool = False
) -> mx.array:
    """(Σ |x|^order)^(1/order), in single precision inside; ±inf and 0 as limits."""
    y = mx.abs(x).astype(mx.float32)
    if order == mx.inf:
        return mx.max(y, axis=axis, keepdims=keepdims)
    if order == -mx.inf:
        return mx.min(y, axis=axis, keepdims=keepdims)
    if order == 0:
        return mx.sum((y != 0).astype(mx.float32), axis=axis, keepdims=keepdims)
    if order == 1:
        return mx.sum(y, axis=axis, keepdims=keepdims)
    if order == 2:
        return mx.sqrt(mx.sum(y * y, axis=axis, keepdims=keepdims))
    return mx.sum(y**order, axis=axis, keepdims=keepdims) ** (1 / order)


def huber_loss(x: mx.array, target: mx.array, delta: float, scale: float) -> mx.array:
    """Scale · d²/2 up to delta, linear with the same slope beyond it; d = |x - target|."""
    d = mx.abs(x - target)
    return scale * mx.where(d < delta, 0.5 * d * d, delta * (d - 0.5 * delta))
