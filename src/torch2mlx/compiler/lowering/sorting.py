"""Operators that order elements along an axis, or look them up in an order.

Equal elements keep their order, as in torch where it promises one (`stable=True`) and on the
CPU where it does not; `topk`, `kthvalue` and `median` promise no index among equal elements.
NaN counts as the largest value in both libraries.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.indexing import lower_gather
from torch2mlx.compiler.lowering.registry import LoweringError, lowering
from torch2mlx.compiler.lowering.shape import lower_reshape
from torch2mlx.compiler.lowering.types import is_integer, promote
from torch2mlx.compiler.runtime import sorting

__all__: list[str] = []

aten = torch.ops.aten


def _zero(b: Builder) -> Value:
    result: Value = b.call(mx.array, 0)
    return result


def _argsort(b: Builder, x: Value, dim: int, descending: bool) -> Value:
    result: Value
    if x.ndim == 0:
        return _zero(b)
    if descending:
        result = b.call(sorting.argsort_descending, x, axis=dim)
    else:
        result = b.call(mx.argsort, x, axis=dim)
    return result


@lowering(aten.argsort.default)
def lower_argsort(b: Builder, x: Value, dim: int = -1, descending: bool = False) -> Value:
    """Indices that sort an axis."""
    return _argsort(b, x, dim, descending)


@lowering(aten.argsort.stable)
def lower_argsort_stable(
    b: Builder, x: Value, *, stable: bool, dim: int = -1, descending: bool = False
) -> Value:
    """Indices that sort an axis."""
    return _argsort(b, x, dim, descending)


@lowering(aten.sort.default)
def lower_sort(
    b: Builder, x: Value, dim: int = -1, descending: bool = False
) -> tuple[Value, Value]:
    """Sorted values and their former places."""
    order = _argsort(b, x, dim, descending)
    return lower_gather(b, x, dim, order), order


@lowering(aten.sort.stable)
def lower_sort_stable(
    b: Builder, x: Value, *, stable: bool | None, dim: int = -1, descending: bool = False
) -> tuple[Value, Value]:
    """Sorted values and their former places."""
    return lower_sort(b, x, dim, descending)


@lowering(aten.msort.default)
def lower_msort(b: Builder, x: Value) -> Value:
    """The first axis sorted."""
    if x.ndim == 0:
        return x
    result: Value = b.call(mx.sort, x, axis=0)
    return result


@lowering(aten.topk.default)
def lower_topk(
    b: Builder,
    x: Value,
    k: int,
    dim: int = -1,
    largest: bool = True,
    sorted: bool = True,  # noqa: A002 - torch's name
) -> tuple[Value, ...]:
    """The k largest or smallest values and their places, in order also if none is asked for."""
    if x.ndim == 0:
        return x, _zero(b)
    result: tuple[Value, ...] = b.call(sorting.top_k, x, k, axis=dim, largest=largest)
    return result


@lowering(aten.kthvalue.default)
def lower_kthvalue(
    b: Builder, x: Value, k: int, dim: int = -1, keepdim: bool = False
) -> tuple[Value, ...]:
    """The k-th smallest value, counted from 1, and its place."""
    if x.ndim == 0:
        return x, _zero(b)
    result: tuple[Value, ...] = b.call(sorting.kth_value, x, k, axis=dim, keepdims=keepdim)
    return result


def _median(b: Builder, x: Value, dim: int, keepdim: bool, ignore_nan: bool) -> tuple[Value, ...]:
    if x.ndim == 0:
        return x, _zero(b)
    result: tuple[Value, ...] = b.call(
        sorting.median, x, axis=dim, keepdims=keepdim, ignore_nan=ignore_nan
    )
    return result


@lowering(aten.median.dim)
def lower_median_dim(b: Builder, x: Value, dim: int, keepdim: bool = False) -> tuple[Value, ...]:
    """The lower of the middle values and its place; NaN if there is one."""
    return _median(b, x, dim, keepdim, False)


@lowering(aten.nanmedian.dim)
def lower_nanmedian_dim(b: Builder, x: Value, dim: int, keepdim: bool = False) -> tuple[Value, ...]:
    """The lower of the middle values that are not NaN, and its place."""
    return _median(b, x, dim, keepdim, True)


@lowering(aten.median.default)
def lower_median(b: Builder, x: Value) -> Value:
    """The lower of the middle values of all elements; NaN if there is one."""
    return _flat_median(b, x, False)


@lowering(aten.nanmedian.default)
def lower_nanmedian(b: Builder, x: Value) -> Value:
    """The lower of the middle values of all elements that are not NaN."""
    return _flat_median(b, x, True)


def _flat_median(b: Builder, x: Value, ignore_nan: bool) -> Value:
    if x.array.size == 0:
        if is_integer(x.dtype):
            raise LoweringError("aten.median of an empty integer tensor: torch leaves it undefined")
        result: Value = b.call(mx.array, float("nan"), x.dtype)
        return result
    return _median(b, lower_reshape(b, x, (-1,)), 0, False, ignore_nan)[0]


@lowering(aten.mode.default)
def lower_mode(b: Builder, x: Value, dim: int = -1, keepdim: bool = False) -> tuple[Value, ...]:
    """The most frequent value, the smallest of several, and the last place that holds it."""
    if x.ndim == 0:
        return x, _zero(b)
    result: tuple[Value, ...] = b.call(sorting.mode, x, axis=dim, keepdims=keepdim)
    return result


def _searchsorted(b: Builder, sequence: Value, values: Value, right: bool) -> Value:
    sequence, values = promote(b, sequence, values)
    side = "right" if right else "left"
    result: Value
    if sequence.ndim == 1:
        result = b.call(mx.searchsorted, sequence, values, side=side)
    else:
        result = b.call(sorting.count_before, sequence, values, side=side)
    return result


def _is_right(right: bool, side: str | None) -> bool:
    return side == "right" if side is not None else right


@lowering(aten.searchsorted.Tensor)
def lower_searchsorted(
    b: Builder,
    sorted_sequence: Value,
    values: Value,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Value | None = None,
) -> Value:
    """Places in the last axis where values would keep the order."""
    if sorter is not None:
        sorted_sequence = lower_gather(b, sorted_sequence, -1, sorter)
    return _searchsorted(b, sorted_sequence, values, _is_right(right, side))


@lowering(aten.searchsorted.Scalar)
def lower_searchsorted_scalar(
    b: Builder,
    sorted_sequence: Value,
    value: Any,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Value | None = None,
) -> Value:
    """The place where a number would keep the order."""
    if sorter is not None:
        sorted_sequence = lower_gather(b, sorted_sequence, -1, sorter)
    return _searchsorted(
        b, sorted_sequence, _number(b, value, sorted_sequence), _is_right(right, side)
    )


def _number(b: Builder, value: Any, beside: Value) -> Value:
    floating = isinstance(value, float) and is_integer(beside.dtype)
    result: Value = b.call(mx.array, value, mx.float32 if floating else beside.dtype)
    return result


@lowering(aten.bucketize.Tensor)
def lower_bucketize(
    b: Builder, x: Value, boundaries: Value, *, out_int32: bool = False, right: bool = False
) -> Value:
    """The bucket of each element; `right` says that a boundary opens its bucket."""
    return _searchsorted(b, boundaries, x, right)


@lowering(aten.bucketize.Scalar)
def lower_bucketize_scalar(
    b: Builder, value: Any, boundaries: Value, *, out_int32: bool = False, right: bool = False
) -> Value:
    """The bucket of a number."""
    return _searchsorted(b, boundaries, _number(b, value, boundaries), right)
