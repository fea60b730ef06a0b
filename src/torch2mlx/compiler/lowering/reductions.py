"""Sums, means, extrema and softmax."""

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

__all__ = ["Dims", "accumulated", "axis_argument", "in_dtype", "reduction_axes"]

aten = torch.ops.aten

Dims = int | list[int] | None


def reduction_axes(x: Value, dim: Dims) -> list[int] | None:
    """The axes that a `dim` argument reduces; None: all of them.

    torch takes `[]` as all, and dimension 0 or -1 of a 0-d tensor.
    """
    if dim is None or x.ndim == 0:
        return None
    dims = [int(dim)] if isinstance(dim, int) else [int(d) for d in dim]
    return [d % x.ndim for d in dims] or None


def axis_argument(x: Value, dim: Dims) -> Any:
    """The axes as one would write them: None for all, a number for one."""
    axes = reduction_axes(x, dim)
    return axes[0] if axes is not None and len(axes) == 1 else axes


def in_dtype(b: Builder, x: Value, dtype: torch.dtype | None) -> Value:
    """The value in the type that a `dtype` argument asks for."""
    return x if dtype is None else b.cast(x, mx_dtype(dtype))


def _reduce(b: Builder, function: Any, x: Value, dim: Dims, keepdim: bool, *args: Any) -> Any:
    kwargs: dict[str, Any] = {}
    axis = axis_argument(x, dim)
    if axis is not None:
        kwargs["axis"] = axis
    if keepdim:
        kwargs["keepdims"] = True
    return b.call(function, x, *args, **kwargs)


def accumulated(b: Builder, x: Value, function: Any, dim: Dims, keepdim: bool) -> Any:
    """Half types are accumulated in single precision, as torch does."""
    if 0 in x.shape:  # MLX 0.32 can loop for ever over an empty array that lies in strides
        x = b.call(mx.zeros, x.shape, x.dtype)
    if is_floating(x.dtype) and x.dtype.size == 2:
        wide = b.cast(x, mx.float32)
        return b.cast(_reduce(b, function, wide, dim, keepdim), x.dtype)
    return _reduce(b, function, x, dim, keepdim)


@lowering(aten.sum.default)
def lower_sum(b: Builder, x: Value, *, dtype: torch.dtype | None = None) -> Any:
    """sum(Tensor self, *, ScalarType? dtype=None): integers in int64."""
    return lower_sum_dim(b, x, None, dtype=dtype)


@lowering(aten.sum.dim_IntList)
def lower_sum_dim(
    b: Builder, x: Value, dim: Dims, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Any:
    """sum.dim_IntList(Tensor self, int[1]? dim, bool keepdim=False, *, ScalarType? dtype)."""
    x = as_integer(b, x) if dtype is None else in_dtype(b, x, dtype)
    return accumulated(b, x, mx.sum, dim, keepdim)


@lowering(aten.nansum.default)
def lower_nansum(
    b: Builder,
    x: Value,
    dim: Dims = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Any:
    """nansum(Tensor self, int[1]? dim=None, bool keepdim=False, *, ScalarType? dtype=None)."""
    x = as_integer(b, x) if dtype is None else in_dtype(b, x, dtype)
    return accumulated(b, x, rt.sum_of_numbers, dim, keepdim)


@lowering(aten.mean.default)
def lower_mean(b: Builder, x: Value, *, dtype: torch.dtype | None = None) -> Any:
    """mean(Tensor self, *, ScalarType? dtype=None)."""
    return lower_mean_dim(b, x, None, dtype=dtype)


@lowering(aten.mean.dim)
def lower_mean_dim(
    b: Builder, x: Value, dim: Dims, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Any:
    """mean.dim(Tensor self, int[1]? dim, bool keepdim=False, *, ScalarType? dtype=None)."""
    return accumulated(b, in_dtype(b, x, dtype), mx.mean, dim, keepdim)


@lowering(aten.nanmean.default)
def lower_nanmean(
    b: Builder,
    x: Value,
    dim: Dims = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Any:
    """nanmean(Tensor self, int[1]? dim=None, bool keepdim=False, *, ScalarType? dtype=None)."""
    return accumulated(b, in_dtype(b, x, dtype), rt.mean_of_numbers, dim, keepdim)


@lowering(aten.prod.default)
def lower_prod(b: Builder, x: Value, *, dtype: torch.dtype | None = None) -> Any:
    """prod(Tensor self, *, ScalarType? dtype=None): integers in int64."""
    return lower_prod_dim(b, x, None, dtype=dtype)


@lowering(aten.prod.dim_int)
def lower_prod_dim(
    b: Builder,
    x: Value,
    dim: int | None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Any:
    """prod.dim_int(Tensor self, int dim, bool keepdim=False, *, ScalarType? dtype=None)."""
    x = as_integer(b, x) if dtype is None else in_dtype(b, x, dtype)
    return accumulated(b, x, mx.prod, dim, keepdim)


# Extrema


@lowering(aten.amax.default)
def lower_amax(b: Builder, x: Value, dim: Dims = None, keepdim: bool = False) -> Any:
    """amax(Tensor self, int[1] dim=[], bool keepdim=False)."""
    return _reduce(b, mx.max, x, dim, keepdim)


@lowering(aten.amin.default)
def lower_amin(b: Builder, x: Value, dim: Dims = None, keepdim: bool = False) -> Any:
    """amin(Tensor self, int[1] dim=[], bool keepdim=False)."""
    return _reduce(b, mx.min, x, dim, keepdim)


@lowering(aten.max.default)
def lower_max(b: Builder, x: Value) -> Any:
    """max(Tensor self)."""
    return b.call(mx.max, x)


@lowering(aten.min.default)
def lower_min(b: Builder, x: Value) -> Any:
    """min(Tensor self)."""
    return b.call(mx.min, x)


@lowering(aten.aminmax.default)
def lower_aminmax(b: Builder, x: Value, *, dim: int | None = None, keepdim: bool = False) -> Any:
    """aminmax(Tensor self, *, int? dim=None, bool keepdim=False)."""
    return _reduce(b, mx.min, x, dim, keepdim), _reduce(b, mx.max, x, dim, keepdim)


def _extremum_along(function: Any) -> Lowering:
    def lower(b: Builder, x: Value, dim: int, keepdim: bool = False) -> Any:
        if x.ndim == 0:
            return x, b.call(mx.zeros, [], mx.int64)
        return b.call(function, x, dim, *((True,) if keepdim else ()))

    return lower


lowering(aten.max.dim)(_extremum_along(rt.max_with_indices))
lowering(aten.min.dim)(_extremum_along(rt.min_with_indices))


def _position(function: Any) -> Lowering:
    def lower(b: Builder, x: Value, dim: int | None = None, keepdim: bool = False) -> Any:
        if x.ndim == 0:
            return b.call(mx.zeros, [], mx.int64)
        return _reduce(b, function, x, dim, keepdim)

    return lower


# The first of equal elements, as torch's CPU kernels give it; NaN counts as the extremum.
lowering(aten.argmax.default)(_position(mx.argmax))
lowering(aten.argmin.default)(_position(mx.argmin))


# Logic


def _quantifier(function: Any) -> Lowering:
    def lower(b: Builder, x: Value, dim: Dims = None, keepdim: bool = False) -> Any:
        if not is_bool(x.dtype):
            x = b.call(mx.not_equal, x, 0)
        if isinstance(dim, list | tuple) and not dim:
            return x
        return _reduce(b, function, x, dim, keepdim)

    return lower


lowering(aten.all.default, aten.all.dim, aten.all.dims, aten._is_all_true.default)(
    _quantifier(mx.all)
)
lowering(aten.any.default, aten.any.dim, aten.any.dims, aten._is_any_true.default)(
    _quantifier(mx.any)
)


@lowering(aten.count_nonzero.default, aten.count_nonzero.dim_IntList)
def lower_count_nonzero(b: Builder, x: Value, dim: Dims = None) -> Any:
    """count_nonzero(Tensor self, int? dim=None)."""
    nonzero = x if is_bool(x.dtype) else b.call(mx.not_equal, x, 0)
    return _reduce(b, mx.sum, nonzero, dim, False)


# Spread


def _spread(b: Builder, function: Any, x: Value, dim: Dims, correction: Any, keepdim: bool) -> Any:
    if is_complex(x.dtype):
        raise LoweringError(f"{function.__name__}: dtype={x.dtype}")
    kwargs: dict[str, Any] = {}
    axis = axis_argument(x, dim)
    if axis is not None:
        kwargs["axis"] = axis
    if keepdim:
        kwargs["keepdims"] = True
    if correction is not None and correction != 1:
        kwargs["correction"] = correction
    return b.call(function, x, **kwargs)


def _register_spread(packet: Any, pair: Any, function: Any) -> None:
    @lowering(packet.default)
    def lower_all(b: Builder, x: Value, unbiased: bool = True) -> Any:
        return _spread(b, function, x, None, int(unbiased), False)

    @lowering(packet.dim)
    def lower_dim(
        b: Builder, x: Value, dim: Dims, unbiased: bool = True, keepdim: bool = False
    ) -> Any:
        return _spread(b, function, x, dim, int(unbiased), keepdim)

    @lowering(packet.correction)
    def lower_correction(
        b: Builder, x: Value, dim: Dims = None, *, correction: Any = None, keepdim: bool = False
    ) -> Any:
        return _spread(b, function, x, dim, correction, keepdim)

    @lowering(pair.default)
    def lower_pair_all(b: Builder, x: Value, unbiased: bool = True) -> Any:
        return lower_all(b, x, unbiased), accumulated(b, x, mx.mean, None, False)

    @lowering(pair.dim)
    def lower_pair_dim(
        b: Builder, x: Value, dim: Dims, unbiased: bool = True, keepdim: bool = False
    ) -> Any:
        mean = accumulated(b, x, mx.mean, dim, keepdim)
        return lower_dim(b, x, dim, unbiased, keepdim), mean

    @lowering(pair.correction)
    def lower_pair_correction(
        b: Builder, x: Value, dim: Dims = None, *, correction: Any = None, keepdim: bool = False
    ) -> Any:
        spread = lower_correction(b, x, dim, correction=correction, keepdim=keepdim)
        return spread, accumulated(b, x, mx.mean, dim, keepdim)


_register_spread(aten.var, aten.var_mean, rt.variance)
_register_spread(aten.std, aten.std_mean, rt.standard_deviation)


# Softmax


def _softmax(function: Any) -> Lowering:
    def lower(b: Builder, x: Value, dim: int, dtype: torch.dtype | bool | None = None) -> Any:
        # `_softmax` has `half_to_float` in third place.
        if isinstance(dtype, bool):
            dtype = torch.float32 if dtype else None
        x = as_float(b, in_dtype(b, x, dtype))
        if x.ndim == 0:
            one = b.call(mx.reshape, x, [1])
            return b.call(mx.reshape, b.call(function, one, 0), [])
        return b.call(function, x, dim)

    return lower


lowering(aten.softmax.int, aten._softmax.default)(_softmax(rt.softmax))
lowering(aten.log_softmax.int, aten._log_softmax.default)(_softmax(rt.log_softmax))


@lowering(aten.logsumexp.default, aten.special_logsumexp.default)
def lower_logsumexp(b: Builder, x: Value, dim: Dims, keepdim: bool = False) -> Any:
    """logsumexp(Tensor self, int[1] dim, bool keepdim=False)."""
    if is_complex(x.dtype):
        raise LoweringError("aten.logsumexp: MLX has none of complex numbers")
    return _reduce(b, rt.logsumexp, as_float(b, x), dim, keepdim)
