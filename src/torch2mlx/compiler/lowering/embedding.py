"""Rows of tables, and tables of positions."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.registry import LoweringError, lowering
from torch2mlx.compiler.runtime import embedding, indexing

__all__: list[str] = []

aten = torch.ops.aten


@lowering(aten.embedding.default)
def lower_embedding(
    b: Builder,
    weight: Value,
    indices: Value,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Value:
    """Rows of a table; the other arguments concern gradients."""
    result: Value = b.call(mx.take, weight, indices, axis=0)
    return result


@lowering(aten.embedding_bag.padding_idx)
def lower_embedding_bag_with_padding(
    b: Builder, weight: Value, indices: Value, offsets: Value, *args: Any, **kwargs: Any
) -> tuple[Value]:
    """As below; here -1 names the last row, and None no row."""
    names = ("scale_grad_by_freq", "mode", "sparse", "per_sample_weights", "include_last_offset")
    options = dict(zip((*names, "padding_idx"), args, strict=False)) | kwargs
    if options.get("padding_idx") is not None:
        options["padding_idx"] = options["padding_idx"] % weight.shape[0]
    return lower_embedding_bag(b, weight, indices, offsets, **options)


@lowering(aten.embedding_bag.default, aten._embedding_bag.default)
@lowering(aten._embedding_bag_forward_only.default)
def lower_embedding_bag(
    b: Builder,
    weight: Value,
    indices: Value,
    offsets: Value,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Value | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Value]:
    """Sum, mean or maximum of bags of rows; the results for the gradient are left out."""
    padding: dict[str, Any] = {}
    if padding_idx is not None and padding_idx >= 0:
        padding = {"padding_index": padding_idx}
    if per_sample_weights is not None:
        padding["sample_weights"] = per_sample_weights
    bags = offsets.shape[0] - 1 if include_last_offset else offsets.shape[0]
    result: Value = b.call(
        embedding.embedding_bag,
        weight,
        indices,
        offsets,
        bags,
        mode=("sum", "mean", "max")[mode],
        **padding,
    )
    return (result,)


@lowering(aten.one_hot.default)
def lower_one_hot(b: Builder, x: Value, num_classes: int = -1) -> Value:
    """Ones at the place that each element names, along a new last axis."""
    if num_classes == -1:
        raise LoweringError("aten.one_hot: num_classes=-1 makes the shape depend on the values")
    classes = b.call(mx.arange, num_classes)
    hot = b.call(mx.equal, b.call(mx.expand_dims, x, -1), classes)
    return b.cast(hot, mx.int64)


@lowering(aten.tril_indices.default)
def lower_tril_indices(b: Builder, row: int, col: int, offset: int = 0, **kwargs: Any) -> Value:
    """Rows and columns of the elements on and below a diagonal."""
    result: Value = b.call(indexing.tril_indices, row, col, offset)
    return result


@lowering(aten.triu_indices.default)
def lower_triu_indices(b: Builder, row: int, col: int, offset: int = 0, **kwargs: Any) -> Value:
    """Rows and columns of the elements on and above a diagonal."""
    result: Value = b.call(indexing.triu_indices, row, col, offset)
    return result


@lowering(aten.nonzero_static.default)
def lower_nonzero_static(b: Builder, x: Value, *, size: int, fill_value: int = -1) -> Value:
    """Places of the first `size` elements that are not zero, filled up with a number."""
    if x.ndim == 0:
        raise LoweringError("aten.nonzero_static of a 0-d tensor")
    result: Value = b.call(indexing.first_nonzero, x, size, fill_value)
    return result
