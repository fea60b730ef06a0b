"""Reading and writing array elements at given places."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

__all__ = [
    "first_nonzero",
    "repeated_indices",
    "scatter",
    "scatter_add",
    "scatter_reduce",
    "spread_over_mask",
    "tril_indices",
    "triu_indices",
    "with_values_added_at",
    "with_values_at",
]


def with_values_at(x: mx.array, key: Any, values: mx.array) -> mx.array:
    """A copy of `x` after `x[key] = values`."""
    result = mx.array(x)
    result[key] = values
    return result


def with_values_added_at(x: mx.array, key: Any, values: mx.array) -> mx.array:
    """A copy of `x` after `x[key] += values`, where a place named twice is added to twice."""
    return x.at[key].add(values)


def repeated_indices(repeats: mx.array, length: int) -> mx.array:
    """Index i, `repeats[i]` times, for each i; `length` in all."""
    return mx.searchsorted(mx.cumsum(repeats), mx.arange(length, dtype=repeats.dtype), side="right")


def first_nonzero(x: mx.array, size: int, fill_value: int) -> mx.array:
    """(size, x.ndim): places of the first elements that are not zero, then `fill_value`."""
    found = mx.cumsum((x != 0).reshape(-1).astype(mx.int32))
    places = mx.searchsorted(found, mx.arange(1, size + 1, dtype=mx.int32)).astype(mx.int32)
    missing = places == x.size
    axes = []
    for extent in reversed(x.shape):
        axes.append(mx.where(missing, fill_value, places % extent))
        places = places // extent
    return mx.stack(axes[::-1], axis=-1)


def tril_indices(rows: int, columns: int, offset: int) -> mx.array:
    """(2, n): row and column of the elements on and below a diagonal, row by row."""
    places = [(i, j) for i in range(rows) for j in range(min(columns, max(0, i + offset + 1)))]
    return mx.array(places, mx.int32).reshape(-1, 2).T


def triu_indices(rows: int, columns: int, offset: int) -> mx.array:
    """(2, n): row and column of the elements on and above a diagonal, row by row."""
    places = [(i, j) for i in range(rows) for j in range(max(0, i + offset), columns)]
    return mx.array(places, mx.int32).reshape(-1, 2).T


def spread_over_mask(values: mx.array, mask: mx.array, trailing: int) -> mx.array:
    """`values[n]` at the n-th True of a mask, anything where it is False.

    The last `trailing` axes of the mask have extent 1: values are slices there.
    """
    shape = mask.shape[: mask.ndim - trailing]
    order = mx.cumsum(mask.reshape(-1).astype(mx.int32)) - 1
    places = mx.clip(order, 0, values.shape[0] - 1)
    return mx.reshape(mx.take(values, places, axis=0), (*shape, *values.shape[1:]))


def scatter(x: mx.array, axis: int, index: mx.array, values: mx.array) -> mx.array:
    """A copy of `x` with `values[..., i, ...]` at place `index[..., i, ...]` of an axis."""
    return with_values_at(x, _grid(index, axis), values)


def scatter_add(x: mx.array, axis: int, index: mx.array, values: mx.array) -> mx.array:
    """`x` with `values[..., i, ...]` added at place `index[..., i, ...]` of an axis."""
    return x.at[_grid(index, axis)].add(values)


def scatter_reduce(
    x: mx.array,
    axis: int,
    index: mx.array,
    values: mx.array,
    reduce: str,
    include_self: bool,
) -> mx.array:
    """`x` combined with `values[..., i, ...]` at place `index[..., i, ...]` of an axis.

    `reduce` is "sum", "prod", "mean", "amax" or "amin"; `include_self` says whether the element
    of `x` takes part where others are combined with it.
    """
    places = _grid(index, axis)
    count = mx.zeros(x.shape, mx.int32).at[places].add(mx.ones(index.shape, mx.int32))
    start = x
    if not include_self:
        start = mx.where(count > 0, _neutral(reduce, x.dtype), x)
    if reduce in ("sum", "mean"):
        result = start.at[places].add(values)
    elif reduce == "prod":
        result = start.at[places].multiply(values)
    elif reduce == "amax":
        result = start.at[places].maximum(values)
    else:
        result = start.at[places].minimum(values)
    floating = mx.issubdtype(x.dtype, mx.floating)
    if reduce == "mean":
        count = mx.maximum(count + int(include_self), 1).astype(x.dtype)
        result = result / count if floating else result // count
    elif reduce in ("amax", "amin") and floating:  # NaN wins, here as in a maximum
        nans = mx.zeros(x.shape, mx.int32).at[places].add(mx.isnan(values).astype(mx.int32))
        result = mx.where((nans > 0) | mx.isnan(start), mx.nan, result)
    return result.astype(x.dtype)


def _grid(index: mx.array, axis: int) -> tuple[mx.array, ...]:
    """Index arrays that name every element of `index`, with `index` itself for one axis."""
    grid = [
        mx.arange(extent).reshape(*(1,) * i, -1, *(1,) * (index.ndim - i - 1))
        for i, extent in enumerate(index.shape)
    ]
    grid[axis] = index
    return tuple(grid)


def _neutral(reduce: str, dtype: mx.Dtype) -> mx.array:
    """The value that a reduction starts from."""
    if reduce in ("sum", "mean"):
        return mx.array(0, dtype)
    if reduce == "prod":
        return mx.array(1, dtype)
    if mx.issubdtype(dtype, mx.floating):
        return mx.array(-mx.inf if reduce == "amax" else mx.inf, dtype)
    limits = mx.iinfo(dtype)
    return mx.array(limits.min if reduce == "amax" else limits.max, dtype)
