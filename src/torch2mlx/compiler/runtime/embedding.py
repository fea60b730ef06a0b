"""Sums, means and maxima of table rows."""

from __future__ import annotations

import mlx.core as mx

__all__ = ["embedding_bag"]


def embedding_bag(
    weight: mx.array,
    indices: mx.array,
    offsets: mx.array,
    bags: int,
    mode: str,
    sample_weights: mx.array | None = None,
    padding_index: int | None = None,
) -> mx.array:
    """One row for each bag of rows of `weight`; an empty bag gives zeros.

    Bag i holds the `indices` from `offsets[i]` up to the next offset; `mode` is "sum", "mean" or
    "max"; rows of `padding_index` take no part.  Computed in float32.
    """
    rows = mx.take(weight, indices, axis=0).astype(mx.float32)
    if sample_weights is not None:
        rows = rows * sample_weights[:, None]
    bag = mx.searchsorted(offsets, mx.arange(indices.shape[0], dtype=offsets.dtype), side="right")
    bag = bag.astype(mx.int32) - 1
    present = mx.ones(indices.shape, mx.bool_)
    if padding_index is not None:
        present = indices != padding_index
    shape = (offsets.shape[0], weight.shape[1])
    count = mx.zeros(shape[:1], mx.int32).at[bag].add(present.astype(mx.int32))[:bags, None]
    if mode == "max":
        rows = mx.where(present[:, None], rows, -mx.inf)
        result = mx.full(shape, -mx.inf).at[bag].maximum(rows)[:bags]
        return mx.where(count > 0, result, 0.0).astype(weight.dtype)
    rows = mx.where(present[:, None], rows, 0.0)
    result = mx.zeros(shape).at[bag].add(rows)[:bags]
    if mode == "mean":
        result = result / mx.maximum(count, 1)
    return result.astype(weight.dtype)
