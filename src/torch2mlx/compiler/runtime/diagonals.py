"""Writing diagonals of matrices."""

from __future__ import annotations

import mlx.core as mx

__all__ = ["diag_embed", "diagonal_scatter"]


def diag_embed(x: mx.array, offset: int, axis1: int, axis2: int) -> mx.array:
    """Matrices over two axes (axis1 < axis2) with the last axis of `x` on a diagonal."""
    size = x.shape[-1] + abs(offset)
    before_after = (max(offset, 0), max(-offset, 0))
    columns = mx.pad(x, [(0, 0)] * (x.ndim - 1) + [before_after])
    on_diagonal = mx.eye(size, k=offset).astype(mx.bool_)
    result = mx.where(on_diagonal, columns[..., None, :], mx.zeros((), x.dtype))
    return mx.moveaxis(mx.moveaxis(result, -2, axis1), -1, axis2)


def diagonal_scatter(
    x: mx.array, values: mx.array, offset: int, axis1: int, axis2: int
) -> mx.array:
    """`x` with `values` on the diagonal of two axes."""
    axis1, axis2 = axis1 % x.ndim, axis2 % x.ndim
    others = [i for i in range(x.ndim) if i not in (axis1, axis2)]
    order = [*others, axis1, axis2]
    result = mx.transpose(x, order)
    steps = mx.arange(values.shape[-1])
    result[..., steps + max(-offset, 0), steps + max(offset, 0)] = values
    return mx.transpose(result, [order.index(i) for i in range(x.ndim)])
