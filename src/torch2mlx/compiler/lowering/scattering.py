"""Elements written or combined along one axis, where an index tensor says."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.indexing import as_vector, assign, subscript_all
from torch2mlx.compiler.lowering.registry import lowering
from torch2mlx.compiler.lowering.shape import (
    axis_key,
    axis_of,
    lower_reshape,
    surely_equal,
)
from torch2mlx.compiler.lowering.types import (
    is_integer,
)
from torch2mlx.compiler.runtime import indexing

__all__: list[str] = []

aten = torch.ops.aten


def _like(b: Builder, result: Value, x: Value) -> Value:
    """What came of `as_vector(x)`, 0-d again if `x` is."""
    return result if x.ndim else lower_reshape(b, result, ())


def _scatter(
    b: Builder, x: Value, dim: int, index: Value, source: Value, reduce: str, include: bool = True
) -> Value:
    """Write or combine `source` where `index` points along one axis."""
    if index.array.size == 0:
        return x
    whole = x
    x, index, source = (as_vector(b, v) for v in (x, index, source))
    if not all(map(surely_equal, source.shape, index.shape)):
        source = subscript_all(b, source, tuple(slice(n) for n in index.shape))
    source = b.cast(source, x.dtype)
    axis = axis_of(dim, x.ndim)
    fits = all(i == axis or surely_equal(n, index.shape[i]) for i, n in enumerate(x.shape))
    result: Value
    if reduce == "assign" and fits:
        result = b.call(mx.put_along_axis, x, index, source, axis=axis)
    elif reduce == "assign":
        result = b.call(indexing.scatter, x, axis, index, source)
    elif reduce == "sum" and include:
        result = b.call(indexing.scatter_add, x, axis, index, source)
    else:
        numbers = [b.cast(v, mx.int32 if v.dtype == mx.bool_ else v.dtype) for v in (x, source)]
        result = b.call(
            indexing.scatter_reduce,
            numbers[0],
            axis,
            index,
            numbers[1],
            reduce,
            include_self=include,
        )
    return _like(b, result, whole)


@lowering(aten.scatter.src)
def lower_scatter(b: Builder, x: Value, dim: int, index: Value, src: Value) -> Value:
    """`x` with the elements that `index` names along one axis replaced by those of `src`."""
    return _scatter(b, x, dim, index, src, "assign")


def _filled(b: Builder, index: Value, value: Any, dtype: Any) -> Value:
    result: Value = b.call(mx.full, tuple(index.shape), value, dtype)
    return result


@lowering(aten.scatter.value)
def lower_scatter_value(b: Builder, x: Value, dim: int, index: Value, value: Any) -> Value:
    """`x` with the elements that `index` names along one axis replaced by a number."""
    return _scatter(b, x, dim, index, _filled(b, index, value, x.dtype), "assign")


_REDUCE = {"add": "sum", "multiply": "prod"}


@lowering(aten.scatter.reduce)
def lower_scatter_with_reduce(
    b: Builder, x: Value, dim: int, index: Value, src: Value, *, reduce: str
) -> Value:
    """`x` with the elements of `src` added or multiplied in."""
    return _scatter(b, x, dim, index, src, _REDUCE[reduce])


@lowering(aten.scatter.value_reduce)
def lower_scatter_value_with_reduce(
    b: Builder, x: Value, dim: int, index: Value, value: Any, *, reduce: str
) -> Value:
    """`x` with a number added or multiplied in."""
    return _scatter(b, x, dim, index, _filled(b, index, value, x.dtype), _REDUCE[reduce])


@lowering(aten.scatter_add.default)
def lower_scatter_add(b: Builder, x: Value, dim: int, index: Value, src: Value) -> Value:
    """`x` with the elements of `src` added."""
    return _scatter(b, x, dim, index, src, "sum")


@lowering(aten.scatter_reduce.two)
def lower_scatter_reduce(
    b: Builder,
    x: Value,
    dim: int,
    index: Value,
    src: Value,
    reduce: str,
    *,
    include_self: bool = True,
) -> Value:
    """`x` combined with `src`: sum, prod, mean, amax or amin, with or without its own value."""
    return _scatter(b, x, dim, index, src, reduce, include_self)


def _along(b: Builder, dim: int, x: Value, index: Value) -> Any:
    return axis_key(axis_of(dim, x.ndim), 0, as_vector(b, index))


@lowering(aten.index_copy.default)
def lower_index_copy(b: Builder, x: Value, dim: int, index: Value, source: Value) -> Value:
    """`x` with slices of an axis replaced."""
    vector = as_vector(b, x)
    result = assign(b, vector, _along(b, dim, vector, index), as_vector(b, source))
    return _like(b, result, x)


@lowering(aten.index_add.default)
def lower_index_add(
    b: Builder, x: Value, dim: int, index: Value, source: Value, *, alpha: Any = 1
) -> Value:
    """`x` with slices added along an axis, times `alpha`."""
    vector, source = as_vector(b, x), b.cast(as_vector(b, source), x.dtype)
    if alpha != 1:
        if is_integer(x.dtype):  # alpha may be negative and the type unsigned
            source = b.cast(source, mx.int64)
        source = b.cast(b.call(mx.multiply, source, alpha), x.dtype)
    key = _along(b, dim, vector, index)
    return _like(b, b.call(indexing.with_values_added_at, vector, key, source), x)


@lowering(aten.index_fill.int_Scalar)
def lower_index_fill(b: Builder, x: Value, dim: int, index: Value, value: Any) -> Value:
    """`x` with slices of an axis set to a number."""
    vector = as_vector(b, x)
    filled = b.call(mx.array, value, x.dtype)
    result = b.call(indexing.with_values_at, vector, _along(b, dim, vector, index), filled)
    return _like(b, result, x)


@lowering(aten.index_fill.int_Tensor)
def lower_index_fill_tensor(b: Builder, x: Value, dim: int, index: Value, value: Value) -> Value:
    """`x` with slices of an axis set to the value of a 0-d tensor."""
    vector = as_vector(b, x)
    return _like(b, assign(b, vector, _along(b, dim, vector, index), value), x)


@lowering(aten.index_reduce.default)
def lower_index_reduce(
    b: Builder,
    x: Value,
    dim: int,
    index: Value,
    source: Value,
    reduce: str,
    *,
    include_self: bool = True,
) -> Value:
    """`x` combined with slices along an axis: prod, mean, amax or amin."""
    vector, source = as_vector(b, x), as_vector(b, source)
    axis = axis_of(dim, vector.ndim)
    shape = [1] * vector.ndim
    shape[axis] = source.shape[axis]
    places = b.call(mx.broadcast_to, lower_reshape(b, index, shape), tuple(source.shape))
    return lower_reshape(
        b, _scatter(b, vector, axis, places, source, reduce, include_self), x.shape
    )
