"""Cumulative operators and differences along a dimension."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.registry import Lowering, LoweringError, lowering
from torch2mlx.compiler.lowering.types import (
    as_float,
    as_integer,
    is_bool,
    is_complex,
    is_floating,
    mx_dtype,
)
from torch2mlx.compiler.runtime import reductions as rt
from torch2mlx.compiler.symbolic import SymbolicInt

__all__: list[str] = []

aten = torch.ops.aten


def _accumulation(function: Any) -> Lowering:
    def lower(b: Builder, x: Value, dim: int, *, dtype: torch.dtype | None = None) -> Any:
        x = as_integer(b, x) if dtype is None else b.cast(x, mx_dtype(dtype))
        if x.ndim == 0:
            return x
        if is_floating(x.dtype) and x.dtype.size == 2:  # torch accumulates in single precision
            return b.cast(b.call(function, b.cast(x, mx.float32), axis=dim), x.dtype)
        return b.call(function, x, axis=dim)

    return lower


lowering(aten.cumsum.default)(_accumulation(mx.cumsum))
lowering(aten.cumprod.default)(_accumulation(mx.cumprod))


@lowering(aten.logcumsumexp.default, aten._logcumsumexp.default)
def lower_logcumsumexp(b: Builder, x: Value, dim: int) -> Any:
    """logcumsumexp(Tensor self, int dim)."""
    if is_complex(x.dtype):
        raise LoweringError("aten.logcumsumexp: MLX has none of complex numbers")
    return x if x.ndim == 0 else b.call(mx.logcumsumexp, as_float(b, x), axis=dim)


def _running(function: Any) -> Lowering:
    def lower(b: Builder, x: Value, dim: int) -> Any:
        if x.ndim == 0:
            return x, b.call(mx.zeros, [], mx.int64)
        return b.call(function, b.cast(x, mx.uint8) if is_bool(x.dtype) else x, dim)

    return lower


lowering(aten.cummax.default)(_running(rt.cummax_with_indices))
lowering(aten.cummin.default)(_running(rt.cummin_with_indices))


@lowering(aten.diff.default)
def lower_diff(
    b: Builder,
    x: Value,
    n: int = 1,
    dim: int = -1,
    prepend: Value | None = None,
    append: Value | None = None,
) -> Any:
    """diff(Tensor self, int n=1, int dim=-1, Tensor? prepend=None, Tensor? append=None)."""
    if n == 0:
        return x
    parts = [part for part in (prepend, x, append) if part is not None]
    if len(parts) > 1:
        x = b.call(mx.concatenate, parts, axis=dim)
    extent = x.shape[dim]
    for _ in range(n if isinstance(extent, SymbolicInt) else min(n, extent)):
        x = b.call(rt.differences, x, dim)
    return x
