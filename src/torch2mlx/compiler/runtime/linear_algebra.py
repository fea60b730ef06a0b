"""Products of matrices and vectors that MLX lacks or defines otherwise."""

from __future__ import annotations

import mlx.core as mx

__all__ = ["addmm", "cross", "integer_matmul", "linear"]


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
