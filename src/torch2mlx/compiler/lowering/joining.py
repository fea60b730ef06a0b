"""Operators that join tensors or take them apart along an axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.indexing import lower_slice
from torch2mlx.compiler.lowering.registry import LoweringError, lowering
from torch2mlx.compiler.lowering.shape import axis_of, lower_reshape, product
from torch2mlx.compiler.runtime import indexing
from torch2mlx.compiler.symbolic import SymbolicInt

__all__: list[str] = []

aten = torch.ops.aten


@lowering(aten.cat.default, aten.concat.default, aten.concatenate.default)
def lower_cat(b: Builder, tensors: Sequence[Value], dim: int = 0) -> Value:
    """Tensors one after the other; empty 1-d tensors are ignored beside others, as in torch."""
    ndim = max(t.ndim for t in tensors)
    parts = [t for t in tensors if ndim == 1 or t.shape != (0,)]
    result: Value
    if len(parts) == 1:
        return parts[0]
    result = b.call(mx.concatenate, parts, axis=dim)
    return result


@lowering(aten.stack.default)
def lower_stack(b: Builder, tensors: Sequence[Value], dim: int = 0) -> Value:
    """Tensors of one shape along a new axis."""
    result: Value = b.call(mx.stack, list(tensors), axis=dim)
    return result


@lowering(aten.hstack.default)
def lower_hstack(b: Builder, tensors: Sequence[Value]) -> Value:
    """Joined along the second axis, 1-d tensors along the first."""
    parts = [lower_reshape(b, t, (1,)) if t.ndim == 0 else t for t in tensors]
    return lower_cat(b, parts, 0 if parts[0].ndim == 1 else 1)


@lowering(aten.vstack.default)
def lower_vstack(b: Builder, tensors: Sequence[Value]) -> Value:
    """Joined along the first axis, vectors as rows."""
    parts = [t if t.ndim > 1 else lower_reshape(b, t, (1, *(t.shape or (1,)))) for t in tensors]
    return lower_cat(b, parts, 0)


@lowering(aten.dstack.default)
def lower_dstack(b: Builder, tensors: Sequence[Value]) -> Value:
    """Joined along the third axis."""
    parts = []
    for t in tensors:
        rows = t.shape if t.ndim > 1 else (1, *(t.shape or (1,)))
        parts.append(t if t.ndim > 2 else lower_reshape(b, t, (*rows, 1)))
    return lower_cat(b, parts, 2)


@lowering(aten.column_stack.default)
def lower_column_stack(b: Builder, tensors: Sequence[Value]) -> Value:
    """Joined along the second axis, vectors as columns."""
    parts = [t if t.ndim > 1 else lower_reshape(b, t, (*(t.shape or (1,)), 1)) for t in tensors]
    return lower_cat(b, parts, 1)


@lowering(aten.split.Tensor, aten.unsafe_split.Tensor)
def lower_split(b: Builder, x: Value, split_size: int, dim: int = 0) -> tuple[Value, ...]:
    """Parts of one size, the last one smaller if need be."""
    extent = x.shape[axis_of(dim, x.ndim)]
    if extent <= split_size:
        return (x,)
    parts = -(-int(extent) // int(split_size))
    if isinstance(extent, SymbolicInt) and not isinstance(split_size, SymbolicInt):
        raise LoweringError(
            f"aten.split: the number of parts of size {split_size} depends on the extent {extent!r}"
        )
    return _split_at(b, x, [split_size] * (parts - 1), extent % split_size == 0, dim)


@lowering(aten.split_with_sizes.default, aten.split.sizes)
@lowering(aten.unsafe_split_with_sizes.default)
def lower_split_with_sizes(
    b: Builder, x: Value, split_sizes: Sequence[int], dim: int = 0
) -> tuple[Value, ...]:
    """Parts of given sizes."""
    if len(split_sizes) < 2:
        return (x,) * len(split_sizes)
    return _split_at(b, x, split_sizes[:-1], len(set(map(repr, split_sizes))) == 1, dim)


def _split_at(
    b: Builder, x: Value, sizes: Sequence[int], equal: bool, dim: int
) -> tuple[Value, ...]:
    places: list[int] = []
    for size in sizes:
        places.append(size if not places else places[-1] + size)
    parts: Any = len(sizes) + 1 if equal and x.shape[axis_of(dim, x.ndim)] else places
    outputs: tuple[Value, ...] = b.call(mx.split, x, parts, axis=dim)
    return outputs


@lowering(aten.chunk.default, aten.unsafe_chunk.default)
def lower_chunk(b: Builder, x: Value, chunks: int, dim: int = 0) -> tuple[Value, ...]:
    """At most `chunks` parts of equal size, the last one smaller if need be."""
    extent = x.shape[axis_of(dim, x.ndim)]
    if extent == 0:
        return (x,) * chunks
    size = (extent + chunks - 1) // chunks
    if isinstance(extent, SymbolicInt):
        parts = -(-int(extent) // int(size))
        return _split_at(b, x, [size] * (parts - 1), False, dim)
    return lower_split(b, x, size, dim)


@lowering(aten.tensor_split.sections)
def lower_tensor_split(b: Builder, x: Value, sections: int, dim: int = 0) -> tuple[Value, ...]:
    """Parts whose sizes differ by one at most, the larger ones first."""
    extent = x.shape[axis_of(dim, x.ndim)]
    size, larger = extent // sections, extent % sections
    places = [size * i + (i if i < larger else larger) for i in range(1, sections)]
    return lower_tensor_split_at(b, x, places, dim)


@lowering(aten.tensor_split.indices)
def lower_tensor_split_at(
    b: Builder, x: Value, indices: Sequence[int], dim: int = 0
) -> tuple[Value, ...]:
    """Parts between given places; as slices, so a place before the one in front gives none."""
    bounds = [None, *indices, None]
    return tuple(
        lower_slice(b, x, dim, start, stop)
        for start, stop in zip(bounds[:-1], bounds[1:], strict=True)
    )


@lowering(aten.unbind.int)
def lower_unbind(b: Builder, x: Value, dim: int = 0) -> tuple[Value, ...]:
    """The slices of an axis, one by one."""
    outputs: tuple[Value, ...] = b.call(mx.unstack, x, axis=dim)
    return outputs


@lowering(aten.repeat_interleave.self_int)
def lower_repeat_interleave(
    b: Builder, x: Value, repeats: int, dim: int | None = None, *, output_size: int | None = None
) -> Value:
    """Each element repeated in its place."""
    result: Value = b.call(mx.repeat, x, repeats, axis=dim if x.ndim else None)
    return result


@lowering(aten.repeat_interleave.Tensor)
def lower_repeat_indices(b: Builder, repeats: Value, *, output_size: int | None = None) -> Value:
    """Index i, repeats[i] times, for each i; the total must be known when compiling."""
    if output_size is None:
        raise LoweringError(
            "aten.repeat_interleave: repeats is a tensor and output_size is not given"
        )
    result: Value = b.call(indexing.repeated_indices, repeats, output_size)
    return result


@lowering(aten.repeat_interleave.self_Tensor)
def lower_repeat_interleave_each(
    b: Builder,
    x: Value,
    repeats: Value,
    dim: int | None = None,
    *,
    output_size: int | None = None,
) -> Value:
    """Each element repeated its own number of times; the total must be known when compiling."""
    if dim is None:
        x, dim = lower_reshape(b, x, (product(x.shape),)), 0
    extent = x.shape[axis_of(dim, x.ndim)] if x.ndim else 1
    if repeats.ndim == 0 or repeats.shape[0] != extent:
        repeats = b.call(mx.broadcast_to, repeats, (extent,))
    places = lower_repeat_indices(b, repeats, output_size=output_size)
    result: Value = b.call(mx.take, x if x.ndim else lower_reshape(b, x, (1,)), places, axis=dim)
    return result


@lowering(aten.meshgrid.default)
def lower_meshgrid(b: Builder, tensors: Sequence[Value]) -> tuple[Value, ...]:
    """Coordinates of a grid, the first tensor along the first axis."""
    return lower_meshgrid_indexing(b, tensors, indexing="ij")


@lowering(aten.meshgrid.indexing)
def lower_meshgrid_indexing(
    b: Builder, tensors: Sequence[Value], *, indexing: str
) -> tuple[Value, ...]:
    """Coordinates of a grid; "xy" exchanges the first two axes."""
    vectors = [lower_reshape(b, t, (1,)) if t.ndim == 0 else t for t in tensors]
    outputs: tuple[Value, ...] = b.call(mx.meshgrid, *vectors, indexing=indexing)
    return outputs


@lowering(aten.cartesian_prod.default)
def lower_cartesian_prod(b: Builder, tensors: Sequence[Value]) -> Value:
    """All combinations of elements, one a row; of one tensor, itself."""
    if len(tensors) == 1:
        return tensors[0]
    grids = lower_meshgrid(b, tensors)
    return lower_stack(b, [lower_reshape(b, grid, (-1,)) for grid in grids], 1)


@lowering(aten.block_diag.default)
def lower_block_diag(b: Builder, tensors: Sequence[Value]) -> Value:
    """A matrix with matrices along its diagonal; vectors count as rows."""
    blocks = [t if t.ndim == 2 else lower_reshape(b, t, (1, *(t.shape or (1,)))) for t in tensors]
    rows = []
    for i, block in enumerate(blocks):
        before = sum(other.shape[1] for other in blocks[:i])
        after = sum(other.shape[1] for other in blocks[i + 1 :])
        rows.append(b.call(mx.pad, block, [(0, 0), (before, after)]))
    return lower_cat(b, rows, 0)
