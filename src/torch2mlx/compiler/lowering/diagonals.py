"""Diagonals of matrices."""

from __future__ import annotations

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.registry import lowering
from torch2mlx.compiler.lowering.shape import (
    axis_of,
    lower_reshape,
)
from torch2mlx.compiler.runtime import diagonals

__all__: list[str] = []

aten = torch.ops.aten


@lowering(aten.diagonal.default)
def lower_diagonal(b: Builder, x: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    """The diagonal of two axes, as the last axis."""
    result: Value = b.call(mx.diagonal, x, offset=offset, axis1=dim1, axis2=dim2)
    return result


@lowering(aten.diag.default)
def lower_diag(b: Builder, x: Value, diagonal: int = 0) -> Value:
    """The diagonal of a matrix, or the matrix of a diagonal."""
    result: Value = b.call(mx.diag, x, k=diagonal)
    return result


@lowering(aten.diagflat.default)
def lower_diagflat(b: Builder, x: Value, offset: int = 0) -> Value:
    """The matrix with all elements on a diagonal."""
    return lower_diag(b, lower_reshape(b, x, (-1,)), offset)


@lowering(aten.diag_embed.default)
def lower_diag_embed(
    b: Builder, x: Value, offset: int = 0, dim1: int = -2, dim2: int = -1
) -> Value:
    """Matrices with the last axis as their diagonal."""
    first, second = axis_of(dim1, x.ndim + 1), axis_of(dim2, x.ndim + 1)
    if first > second:
        first, second, offset = second, first, -offset
    result: Value = b.call(diagonals.diag_embed, x, offset, first, second)
    return result


@lowering(aten.diagonal_scatter.default)
def lower_diagonal_scatter(
    b: Builder, x: Value, source: Value, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> Value:
    """`x` with other values on the diagonal of two axes."""
    result: Value = b.call(
        diagonals.diagonal_scatter, x, b.cast(source, x.dtype), offset, dim1, dim2
    )
    return result
