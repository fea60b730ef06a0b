"""Orders and order statistics along an axis; equal elements keep their order, NaN is largest."""

from __future__ import annotations

import mlx.core as mx

__all__ = ["argsort_descending", "count_before", "kth_value", "median", "mode", "top_k"]


def argsort_descending(x: mx.array, axis: int) -> mx.array:
    """Indices that sort an axis from the largest to the smallest element."""
    order = mx.flip(mx.argsort(mx.flip(x, axis), axis=axis), axis)
    return x.shape[axis] - 1 - order.astype(mx.int32)


def top_k(x: mx.array, k: int, axis: int, largest: bool) -> tuple[mx.array, mx.array]:
    """The k largest (or smallest) elements of an axis, in order, and their places."""
    order = argsort_descending(x, axis) if largest else mx.argsort(x, axis=axis)
    places = mx.split(order, [k], axis=axis)[0]
    return mx.take_along_axis(x, places, axis=axis), places


def kth_value(x: mx.array, k: int, axis: int, keepdims: bool) -> tuple[mx.array, mx.array]:
    """The k-th smallest element of an axis, counted from 1, and its place."""
    rank = mx.full([1] * x.ndim, k - 1)
    return _at_rank(x, mx.argsort(x, axis=axis), rank, axis, keepdims)


def median(x: mx.array, axis: int, keepdims: bool, ignore_nan: bool) -> tuple[mx.array, mx.array]:
    """The lower of the middle elements of an axis, and its place; NaN unless it is ignored."""
    extent = x.shape[axis]
    numbers = extent - mx.sum(mx.isnan(x), axis=axis, keepdims=True).astype(mx.int32)
    middle = mx.maximum((numbers - 1) // 2, 0)
    rank = middle if ignore_nan else mx.where(numbers < extent, numbers, middle)
    return _at_rank(x, mx.argsort(x, axis=axis), rank, axis, keepdims)


def mode(x: mx.array, axis: int, keepdims: bool) -> tuple[mx.array, mx.array]:
    """The most frequent element of an axis, the smallest of several, and its last place."""
    order = mx.moveaxis(mx.argsort(x, axis=axis), axis, -1)
    values = mx.take_along_axis(mx.moveaxis(x, axis, -1), order, axis=-1)
    places = mx.arange(values.shape[-1])
    starts = mx.concatenate(
        [mx.zeros_like(order[..., :1]).astype(mx.bool_), values[..., 1:] != values[..., :-1]], -1
    )
    lengths = places - mx.cummax(mx.where(starts, places, 0), axis=-1)
    rank = mx.moveaxis(mx.argmax(lengths, axis=-1, keepdims=True), -1, axis)
    return _at_rank(x, mx.moveaxis(order, -1, axis), rank, axis, keepdims)


def _at_rank(
    x: mx.array, order: mx.array, rank: mx.array, axis: int, keepdims: bool
) -> tuple[mx.array, mx.array]:
    places = mx.take_along_axis(order, rank, axis=axis)
    values = mx.take_along_axis(x, places, axis=axis)
    if keepdims:
        return values, places
    return mx.squeeze(values, axis), mx.squeeze(places, axis)


def count_before(sequence: mx.array, values: mx.array, side: str) -> mx.array:
    """Where values belong in the sorted last axis, as `mx.searchsorted` for several axes.

    `sequence` is (n,), or (..., n) with the leading axes of `values`; the side "left" counts the
    elements that are smaller, "right" also those that are equal.
    """
    ahead = sequence[..., None, :] if sequence.ndim > 1 else sequence
    values = values[..., None]
    after = ahead >= values if side == "left" else ahead > values
    return mx.sum(mx.logical_not(after), axis=-1)
