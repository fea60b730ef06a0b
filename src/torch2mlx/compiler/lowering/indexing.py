"""Operators that read or write elements at given places."""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.registry import LoweringError, lowering
from torch2mlx.compiler.lowering.shape import (
    axis_key,
    axis_of,
    lower_reshape,
    same_extents,
    subscript,
    surely_equal,
)
from torch2mlx.compiler.runtime import indexing
from torch2mlx.compiler.symbolic import SymbolicInt

__all__ = ["as_vector", "assign", "lower_gather", "lower_slice", "subscript_all"]

aten = torch.ops.aten


def as_vector(b: Builder, x: Value) -> Value:
    """A 0-d tensor as one of one element, as most indexing operators of torch take it."""
    return x if x.ndim else lower_reshape(b, x, (1,))


def _axis_slice(start: int | None, stop: int | None, step: int = 1) -> slice:
    """A slice without the bounds that Python fills in itself."""
    open_start = start is None or (not isinstance(start, SymbolicInt) and start == 0)
    open_stop = stop is None or stop == sys.maxsize
    return slice(
        None if open_start else start, None if open_stop else stop, None if step == 1 else step
    )


@lowering(aten.slice.Tensor)
def lower_slice(
    b: Builder,
    x: Value,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Value:
    """Part of an axis; bounds wrap and clamp as in Python."""
    axis = axis_of(dim, x.ndim)
    part = _axis_slice(start, end, step)
    extent = x.shape[axis]
    fixed = not any(isinstance(n, SymbolicInt) for n in (extent, start, end))
    if part == slice(None) or (fixed and part.indices(extent) == (0, extent, 1)):
        return x
    return subscript(b, x, axis, part)


@lowering(aten.narrow.default)
def lower_narrow(b: Builder, x: Value, dim: int, start: int, length: int) -> Value:
    """`length` elements of an axis from `start` on."""
    if start < 0:
        start = start + x.shape[axis_of(dim, x.ndim)]
    return lower_slice(b, x, dim, start, start + length)


@lowering(aten.select.int)
def lower_select(b: Builder, x: Value, dim: int, index: int) -> Value:
    """One slice of an axis, without the axis."""
    return subscript(b, x, axis_of(dim, x.ndim), index)


@lowering(aten.select_scatter.default)
def lower_select_scatter(b: Builder, x: Value, source: Value, dim: int, index: int) -> Value:
    """`x` with one slice of an axis replaced."""
    return assign(b, x, axis_key(axis_of(dim, x.ndim), x.ndim, index), source)


@lowering(aten.slice_scatter.default)
def lower_slice_scatter(
    b: Builder,
    x: Value,
    source: Value,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Value:
    """`x` with part of an axis replaced."""
    axis = axis_of(dim, x.ndim)
    part = _axis_slice(start, end, step)
    if part == slice(None) and same_extents(x.shape, source.shape):
        return b.cast(source, x.dtype)
    return assign(b, x, axis_key(axis, x.ndim, part), source)


def assign(b: Builder, x: Value, key: Any, source: Value) -> Value:
    """A copy of `x` after `x[key] = source`."""
    result: Value = b.call(indexing.with_values_at, x, key, b.cast(source, x.dtype))
    return result


@lowering(aten.index_select.default)
def lower_index_select(b: Builder, x: Value, dim: int, index: Value) -> Value:
    """Slices of an axis in the order of `index`."""
    if x.ndim == 0:  # one element, whatever the index
        return x
    result: Value = b.call(mx.take, x, as_vector(b, index), axis=dim)
    return result


@lowering(aten.take.default)
def lower_take(b: Builder, x: Value, index: Value) -> Value:
    """Elements of the flattened tensor."""
    result: Value = b.call(mx.take, as_vector(b, x), index)
    return result


@lowering(aten.gather.default)
def lower_gather(
    b: Builder, x: Value, dim: int, index: Value, *, sparse_grad: bool = False
) -> Value:
    """Along one axis the elements that `index` names; `index` may be smaller on the others."""
    if index.ndim == 0:
        return lower_reshape(b, lower_take(b, x, index), ())
    x = as_vector(b, x)
    if index.array.size == 0:
        result: Value = b.call(mx.zeros, tuple(index.shape), x.dtype)
        return result
    axis = axis_of(dim, x.ndim)
    cut = tuple(
        slice(None) if i == axis or surely_equal(index.shape[i], n) else slice(index.shape[i])
        for i, n in enumerate(x.shape)
    )
    if any(part != slice(None) for part in cut):
        x = subscript_all(b, x, cut)
    result = b.call(mx.take_along_axis, x, index, axis=dim)
    return result


def subscript_all(b: Builder, x: Value, key: tuple[slice, ...]) -> Value:
    """`x[key]` without trailing full slices."""
    while key and key[-1] == slice(None):
        key = key[:-1]
    result: Value = b.call(operator.getitem, x, key if len(key) > 1 else key[0])
    return result


@lowering(aten.take_along_dim.default)
def lower_take_along_dim(b: Builder, x: Value, indices: Value, dim: int | None = None) -> Value:
    """As gather with broadcasting; without `dim` on the flattened tensors."""
    if dim is None:
        return lower_take(b, x, lower_reshape(b, indices, (-1,)))
    result: Value = b.call(mx.take_along_axis, x, indices, axis=dim)
    return result


def _key(indices: Sequence[Value | None]) -> tuple[Any, ...]:
    """Subscript of index tensors; MLX and torch place broadcast axes by the same rule."""
    key = [slice(None) if index is None else index for index in indices]
    while key and isinstance(key[-1], slice):
        key.pop()
    return tuple(key)


@lowering(aten.index.Tensor, aten._unsafe_index.Tensor)
def lower_index(b: Builder, x: Value, indices: Sequence[Value | None]) -> Value:
    """`x[i, :, j]`: elements at index tensors broadcast together, None for a whole axis."""
    used = [index for index in indices if index is not None]
    if any(index.dtype in (mx.bool_, mx.uint8) for index in used):
        raise LoweringError(
            "aten.index: a boolean mask makes the shape depend on the values; "
            "write it with torch.where or a product with the mask"
        )
    if not used:
        return x
    result: Value
    if len(used) == 1:
        axis = next(i for i, index in enumerate(indices) if index is not None)
        result = b.call(mx.take, x, used[0], axis=axis)
    else:
        result = b.call(operator.getitem, x, _key(indices))
    return result


@lowering(aten.index_put.default, aten._unsafe_index_put.default)
def lower_index_put(
    b: Builder,
    x: Value,
    indices: Sequence[Value | None],
    values: Value,
    accumulate: bool = False,
) -> Value:
    """`x` with elements at index tensors, or under a mask, replaced or added to."""
    if x.array.size == 0:
        return x
    used = [index for index in indices if index is not None]
    values = b.cast(values, x.dtype)
    if any(index.dtype in (mx.bool_, mx.uint8) for index in used):
        return _masked_put(b, x, indices, values, accumulate)
    result: Value
    if not used:
        result = b.call(mx.broadcast_to, values, tuple(x.shape))
        if accumulate:
            result = b.call(mx.add, x, result)
        return result
    function = indexing.with_values_added_at if accumulate else indexing.with_values_at
    result = b.call(function, x, _key(indices), values)
    return result


def _masked_put(
    b: Builder, x: Value, indices: Sequence[Value | None], values: Value, accumulate: bool
) -> Value:
    """One mask over the first axes: exact, because the shape of the result is that of `x`."""
    mask, *others = indices
    if mask is None or any(index is not None for index in others):
        raise LoweringError("aten.index_put: a boolean mask beside other indices")
    rest = x.ndim - mask.ndim
    if values.array.size == 0:  # no place under the mask
        return x
    mask = b.cast(mask, mx.bool_)
    if rest:
        mask = lower_reshape(b, mask, (*mask.shape, *(1,) * rest))
    if values.ndim > rest and values.shape[0] != 1:
        if len(values.shape) != rest + 1:
            raise LoweringError("aten.index_put: values have more axes than the masked tensor")
        values = b.call(indexing.spread_over_mask, values, mask, rest)
    elif values.ndim > rest:
        values = lower_reshape(b, values, values.shape[1:])
    new = b.call(mx.add, x, values) if accumulate else values
    result: Value = b.call(mx.where, mask, b.cast(new, x.dtype), x)
    return result


@lowering(aten.masked_scatter.default)
def lower_masked_scatter(b: Builder, x: Value, mask: Value, source: Value) -> Value:
    """`x` with the elements under the mask replaced by those of `source`, one after the other."""
    ndim = max(x.ndim, mask.ndim)
    shape = [
        n if m == 1 else m
        for n, m in zip(
            (*(1,) * (ndim - x.ndim), *x.shape),
            (*(1,) * (ndim - mask.ndim), *mask.shape),
            strict=True,
        )
    ]
    if x.array.size == 0 or source.array.size == 0:
        return x
    x, mask = (b.call(mx.broadcast_to, v, tuple(shape)) for v in (x, mask))
    source = b.call(indexing.spread_over_mask, lower_reshape(b, source, (-1,)), mask, 0)
    result: Value = b.call(mx.where, mask, b.cast(source, x.dtype), x)
    return result


@lowering(aten.put.default)
def lower_put(b: Builder, x: Value, index: Value, source: Value, accumulate: bool = False) -> Value:
    """`x` with elements, counted in the flattened tensor, replaced or added to."""
    if index.array.size == 0:
        return x
    flat, index, source = (lower_reshape(b, v, (-1,)) for v in (x, index, source))
    function = indexing.with_values_added_at if accumulate else indexing.with_values_at
    result = b.call(function, flat, index, b.cast(source, x.dtype))
    return lower_reshape(b, result, x.shape)


@lowering(
    aten.nonzero.default,
    aten.nonzero_numpy.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten._unique.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.unique_dim_consecutive.default,
    aten.bincount.default,
    aten.argwhere.default,
)
def lower_data_dependent(b: Builder, x: Value, *args: Any, **kwargs: Any) -> Value:
    """Refused: MLX has no arrays whose shape follows from values."""
    raise LoweringError(
        "the shape of the result depends on the values of the tensor, which MLX cannot express; "
        "write it with torch.where, a product with the mask, or topk of a fixed number"
    )
