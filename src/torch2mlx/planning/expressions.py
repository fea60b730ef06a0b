"""Tensors as expressions over source tensors, evaluated region by region.

A conversion never holds a model.  Every output tensor is an expression; asking it for a region
(one `range` per axis) asks its operands for just the regions they need, down to rows of a
file.  A stack of 256 experts is written block by block without ever being whole in memory.

Here is movement (transpose, reshape, slice, concatenate), which works on bit views and is exact for
every dtype; arithmetic is in `planning.functions`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, Protocol

import numpy as np

from torch2mlx.dtypes import DType
from torch2mlx.planning.regions import (
    Region,
    as_slices,
    flat_hull,
    flat_pieces,
    full,
    hull_extents,
    lengths,
    reshape_groups,
)

__all__ = [
    "Bits",
    "Concat",
    "Expr",
    "Reader",
    "Reshape",
    "Slice",
    "Source",
    "Stored",
    "Transpose",
    "contiguous",
    "sources_of",
    "stack",
]

Array = np.ndarray[Any, Any]

# Column slabs of a file are gathered from row chunks of this size, so that a transposed read
# holds the slab and one chunk, not the tensor.
_CHUNK_BYTES = 16 << 20


class Reader(Protocol):
    """What expressions read from; `torch2mlx.sources.base.TensorSource` is one."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Rows [start, stop) of axis 0."""

    def read_flat(self, name: str, start: int, stop: int) -> Array:
        """Elements [start, stop) in row-major order, 1-d."""


class Expr(ABC):
    """A tensor that can be read by region.

    Attributes:
        dtype: element type of the values.
        shape: extent of each axis.
    """

    __slots__ = ()  # a large model has a million nodes

    dtype: DType
    shape: tuple[int, ...]

    @property
    def children(self) -> tuple[Expr, ...]:
        """Operands, in order."""
        return ()

    @abstractmethod
    def read(self, region: Region, reader: Reader) -> Array:
        """The values of a region as a bit view; its shape is the lengths of the ranges."""

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return self.size * self.dtype.itemsize


class Stored(Expr):
    """A tensor of the checkpoint under its name: what everything that runs backwards ends at."""

    __slots__ = ()

    name: str


@dataclass(frozen=True, eq=False, slots=True)
class Source(Stored):
    """A tensor as a file holds it."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    def read(self, region: Region, reader: Reader) -> Array:
        if not self.shape:
            return reader.read(self.name).reshape(())
        if not all(lengths(region)):
            return np.empty(lengths(region), self.dtype.numpy)
        return self._box(self.shape, region, 0, reader)

    def _box(self, shape: tuple[int, ...], region: Region, base: int, reader: Reader) -> Array:
        """A box of the part that begins at element `base` and has the trailing axes `shape`."""
        rows, rest = region[0], region[1:]
        inner = prod(shape[1:])
        whole = rest == full(shape[1:])
        if len(rows) == 1 and not whole:  # part of one expert of a stored stack, for instance
            return self._box(shape[1:], rest, base + rows.start * inner, reader)[None]
        if whole and rows.step == 1:
            return self._rows(shape, rows.start, rows.stop, base, reader)
        chunk = max(1, _CHUNK_BYTES // max(1, inner * self.dtype.itemsize))
        parts = []
        for start in range(rows.start, rows[-1] + 1, chunk * rows.step):
            stop = min(start + (chunk - 1) * rows.step + 1, rows[-1] + 1)
            block = self._rows(shape, start, stop, base, reader)
            parts.append(block[(slice(None, None, rows.step), *as_slices(rest))])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _rows(
        self, shape: tuple[int, ...], start: int, stop: int, base: int, reader: Reader
    ) -> Array:
        if len(shape) == len(self.shape):
            return reader.read(self.name, start, stop)
        inner = prod(shape[1:])
        flat = reader.read_flat(self.name, base + start * inner, base + stop * inner)
        return flat.reshape(stop - start, *shape[1:])


@dataclass(frozen=True, eq=False, slots=True)
class Transpose(Expr):
    """Axes in another order: output axis i is operand axis `axes[i]`."""

    operand: Expr
    axes: tuple[int, ...]

    @property
    def dtype(self) -> DType:  # type: ignore[override]
        return self.operand.dtype

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(self.operand.shape[a] for a in self.axes)

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.operand,)

    def operand_region(self, region: Region) -> Region:
        """The operand's region that holds `region` of the output."""
        return tuple(region[self.axes.index(a)] for a in range(len(self.axes)))

    def read(self, region: Region, reader: Reader) -> Array:
        return self.operand.read(self.operand_region(region), reader).transpose(self.axes)


@dataclass(frozen=True, eq=False, slots=True)
class Slice(Expr):
    """A strided part of the operand, one range an axis."""

    operand: Expr
    ranges: Region

    @property
    def dtype(self) -> DType:  # type: ignore[override]
        return self.operand.dtype

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return lengths(self.ranges)

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.operand,)

    def operand_region(self, region: Region) -> Region:
        """The operand's region that holds `region` of the output."""
        return tuple(
            mine[r.start : r.stop : r.step] if r else range(0)
            for mine, r in zip(self.ranges, region, strict=True)
        )

    def read(self, region: Region, reader: Reader) -> Array:
        return self.operand.read(self.operand_region(region), reader)


@dataclass(frozen=True, eq=False, slots=True)
class Concat(Expr):
    """Operands one after the other along an axis."""

    operands: tuple[Expr, ...]
    axis: int

    @property
    def dtype(self) -> DType:  # type: ignore[override]
        return self.operands[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        first, axis = self.operands[0].shape, self.axis
        return (*first[:axis], sum(o.shape[axis] for o in self.operands), *first[axis + 1 :])

    @property
    def children(self) -> tuple[Expr, ...]:
        return self.operands

    def pieces(self, region: Region) -> Iterator[tuple[Expr, Region, slice]]:
        """(operand, its region, where it lands along the axis in the output region)."""
        wanted, offset, landed = region[self.axis], 0, 0
        for operand in self.operands:
            extent = operand.shape[self.axis]
            # First wanted index at or after `offset`, and the wanted ones below its end.
            skip = max(0, -(-(offset - wanted.start) // wanted.step))
            part = wanted[skip:]
            if part and part.start < offset + extent:
                count = min(len(part), -(-(offset + extent - part.start) // part.step))
                part = part[:count]
                local = range(part.start - offset, part[-1] - offset + 1, part.step)
                inner = (*region[: self.axis], local, *region[self.axis + 1 :])
                yield operand, inner, slice(landed, landed + count)
                landed += count
            offset += extent

    def read(self, region: Region, reader: Reader) -> Array:
        parts = [operand.read(inner, reader) for operand, inner, _ in self.pieces(region)]
        if not parts:
            return np.empty(lengths(region), self.dtype.numpy)
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=self.axis)


@dataclass(frozen=True, eq=False, slots=True)
class Reshape(Expr):
    """The same elements in row-major order under another shape."""

    operand: Expr
    shape: tuple[int, ...]

    @property
    def dtype(self) -> DType:  # type: ignore[override]
        return self.operand.dtype

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.operand,)

    def pieces(self, region: Region) -> tuple[tuple[int, ...], list[Any], tuple[slice, ...]]:
        """How a region lies in the operand.

        Returns:
            the extents of a buffer with one axis a group of axes; [(operand region, buffer
            slices)]; and the slices that cut `region` out of the buffer once it is reshaped
            to the hull of the region.
        """
        old, extents, per_group = self.operand.shape, [], []
        cut: list[slice] = []
        for left, right in reshape_groups(old, self.shape):
            extent = [self.shape[j] for j in right]
            lo, hi, inside = flat_hull(extent, tuple(region[j] for j in right))
            cut.extend(as_slices(inside))
            extents.append(hi - lo)
            per_group.append(
                [
                    (part, slice(a - lo, b - lo))
                    for part, a, b in flat_pieces([old[i] for i in left], lo, hi)
                ]
            )
        combined = [
            (tuple(r for part, _ in combo for r in part), tuple(where for _, where in combo))
            for combo in product(*per_group)
        ]
        return tuple(extents), combined, tuple(cut)

    def hull(self, region: Region) -> tuple[int, ...]:
        """Extents of the smallest row-major box around a region that `pieces` fills."""
        extents: list[int] = []
        for _, right in reshape_groups(self.operand.shape, self.shape):
            shape, part = [self.shape[j] for j in right], tuple(region[j] for j in right)
            extents.extend(hull_extents(shape, part))
        return tuple(extents)

    def read(self, region: Region, reader: Reader) -> Array:
        if not all(lengths(region)):
            return np.empty(lengths(region), self.dtype.numpy)
        extents, pieces, cut = self.pieces(region)
        if len(pieces) == 1:
            buffer = self.operand.read(pieces[0][0], reader)
        else:
            buffer = np.empty(extents, self.dtype.numpy)
            for inner, where in pieces:
                target = buffer[where]
                target[...] = self.operand.read(inner, reader).reshape(target.shape)
        return buffer.reshape(self.hull(region))[cut]


@dataclass(frozen=True, eq=False, slots=True)
class Bits(Expr):
    """The operand's bits under another dtype, as `mlx.core.array.view` does along the last axis."""

    operand: Expr
    dtype: DType

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        shape, old = self.operand.shape, self.operand.dtype.itemsize
        return (*shape[:-1], shape[-1] * old // self.dtype.itemsize) if shape else ()

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.operand,)

    def operand_region(self, region: Region) -> Region:
        """The operand's region that holds `region` of the output (last axis whole)."""
        return (*region[:-1], range(self.operand.shape[-1])) if region else ()

    def read(self, region: Region, reader: Reader) -> Array:
        block = contiguous(self.operand.read(self.operand_region(region), reader))
        viewed = block.view(self.dtype.numpy)
        return viewed[(..., as_slices(region)[-1])] if region else viewed


def contiguous(values: Array) -> Array:
    """Row-major values of the same shape; numpy's function makes 0-d arrays 1-d."""
    return np.ascontiguousarray(values).reshape(values.shape)


def stack(operands: Sequence[Expr], axis: int = 0) -> Expr:
    """Operands along a new axis."""
    shape = operands[0].shape
    unit = (*shape[:axis], 1, *shape[axis:])
    return Concat(tuple(Reshape(o, unit) for o in operands), axis)


def sources_of(expr: Expr) -> Iterator[Stored]:
    """Every tensor of the checkpoint under an expression, repeated where it is used again."""
    if isinstance(expr, Stored):
        yield expr
    for child in expr.children:
        yield from sources_of(child)
