"""Products of matrices and vectors that MLX lacks or defines otherwise."""

from __future__ import annotations

import mlx.core as mx

__all__ = ["addmm", "bilinear", "cross", "grouped_matmul", "integer_matmul", "linear"]


def linear(x: mx.array, weight: mx.array, bias: mx.array | None = None) -> mx.array:
    """X Wᵀ + bias, with a weight of (out, in), or (in) for a single output."""
    y = x @ weight.T
    return y if bias is None else y + bias


def integer_matmul(x: mx.array, y: mx.array) -> mx.array:
    """The matrix product of integers, exact."""
    if x.ndim == 1:
        return (
            integer_matmul(x[None], y)[..., 0, :] if y.ndim > 1 else mx.sum(x * y).astype(x.dtype)
        )
    if y.ndim == 1:
        return integer_matmul(x, y[:, None])[..., 0]
    return mx.sum(x[..., :, :, None] * y[..., None, :, :], axis=-2).astype(x.dtype)


def addmm(
    x: mx.array, left: mx.array, right: mx.array, beta: float = 1, alpha: float = 1
) -> mx.array:
    """Beta · x + alpha · left @ right; x is not read where beta is 0."""
    product = left @ right if alpha == 1 else alpha * (left @ right)
    if beta == 0:
        return product
    return product + (x if beta == 1 else beta * x)


def cross(x: mx.array, y: mx.array, axis: int) -> mx.array:
    """Cross product of vectors along an axis of 3."""
    ahead, behind = mx.roll(x, -1, axis), mx.roll(x, 1, axis)
    return ahead * mx.roll(y, 1, axis) - behind * mx.roll(y, -1, axis)


def bilinear(
    left: mx.array, right: mx.array, weight: mx.array, bias: mx.array | None = None
) -> mx.array:
    """leftᵀ Wₖ right + biasₖ for each k; weights of (out, left, right)."""
    outputs, rows, columns = weight.shape
    mixed = left @ mx.reshape(mx.swapaxes(weight, 0, 1), (rows, outputs * columns))
    y = mx.sum(mx.unflatten(mixed, -1, (outputs, columns)) * right[..., None, :], axis=-1)
    return y if bias is None else y + bias


def grouped_matmul(x: mx.array, weight: mx.array, ends: mx.array) -> mx.array:
    """Rows of `x` times one of the matrices each: group g ends before row `ends[g]`."""
    rows = mx.arange(x.shape[0], dtype=ends.dtype)
    groups = mx.searchsorted(ends, rows, side="right")
    groups = mx.minimum(groups.astype(mx.uint32), weight.shape[0] - 1)
    return mx.gather_mm(x[:, None, :], weight, rhs_indices=groups, sorted_indices=True)[:, 0]
