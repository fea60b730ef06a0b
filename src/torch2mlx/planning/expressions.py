"""Tensors as expressions over source tensors, evaluated region by region.

A conversion never holds a model.  Every output tensor is an expression; asking it for a region
(one `range` per axis) asks its operands for just the regions they need, down to rows of a
file.  A stack of 256 experts is written block by block without ever being whole in memory.

Movement (transpose, reshape, slice, concatenate) works on bit views and is exact for every
dtype.  Arithmetic goes through the very MLX functions that a port's own loader calls, so the
bytes are the same as on the in-memory path.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import prod
from typing import Any, Protocol

import numpy as np

from torch2mlx.dtypes import DType, from_mx, to_mx
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
    "AlongRows",
    "Apply",
    "Bits",
    "Concat",
    "Expr",
    "Reader",
    "Reshape",
    "Slice",
    "Source",
    "Stored",
    "Transpose",
    "Whole",
    "cast",
    "sources_of",
    "stack",
    "whole_bytes",
]

Array = np.ndarray[Any, Any]
_Unary = Callable[[Any], Any]

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
        block = _contiguous(self.operand.read(self.operand_region(region), reader))
        viewed = block.view(self.dtype.numpy)
        return viewed[(..., as_slices(region)[-1])] if region else viewed


@dataclass(frozen=True, eq=False, slots=True)
class Apply(Expr):
    """An elementwise MLX function with numpy broadcasting; constants are bound inside `function`.

    Attributes:
        name: for printing ("astype bfloat16").
        function: takes one MLX array an operand, returns the result.
        operands: tensors; an extent of 1 broadcasts.
        inverse: undoes the function in float32 torch, where it has one operand and an inverse.
        forward: the function in torch, for checking without MLX (None: not available).
        inverse_in: for a function whose constant has elements of its own (one factor a row):
            region of the output → `inverse` there.
    """

    name: str
    function: Callable[..., Any]
    operands: tuple[Expr, ...]
    dtype: DType
    shape: tuple[int, ...]
    inverse: Callable[[Any], Any] | None = None
    forward: Callable[[Any], Any] | None = None
    inverse_in: Callable[[Region], Callable[[Any], Any]] | None = None

    @property
    def children(self) -> tuple[Expr, ...]:
        return self.operands

    def operand_region(self, operand: Expr, region: Region) -> Region:
        """The operand's region that holds `region` of the output."""
        own = region[len(region) - len(operand.shape) :]
        return tuple(
            range(min(1, len(r))) if extent == 1 else r
            for extent, r in zip(operand.shape, own, strict=True)
        )

    def read(self, region: Region, reader: Reader) -> Array:
        values = [
            to_mx(_contiguous(o.read(self.operand_region(o, region), reader)), o.dtype)
            for o in self.operands
        ]
        return np.broadcast_to(from_mx(_on_cpu(self.function, values)), lengths(region))


@dataclass(frozen=True, eq=False, slots=True)
class AlongRows(Expr):
    """An MLX function of whole rows: leading axes correspond, the last axis is taken whole.

    Attributes:
        name: for printing ("dequantize").
        function: takes one MLX array [..., width of the operand] an operand.
        operands: tensors that agree in all axes but the last.
    """

    name: str
    function: Callable[..., Any]
    operands: tuple[Expr, ...]
    dtype: DType
    shape: tuple[int, ...]

    @property
    def children(self) -> tuple[Expr, ...]:
        return self.operands

    def read(self, region: Region, reader: Reader) -> Array:
        values = [
            to_mx(_contiguous(o.read((*region[:-1], range(o.shape[-1])), reader)), o.dtype)
            for o in self.operands
        ]
        return from_mx(_on_cpu(self.function, values))[(..., as_slices(region)[-1])]


@dataclass(frozen=True, eq=False, slots=True)
class Whole(Expr):
    """Any other MLX function: operands are read whole, then the result is cut.

    The only node whose memory grows with the tensor; the plan lists such outputs.
    """

    name: str
    function: Callable[..., Any]
    operands: tuple[Expr, ...]
    dtype: DType
    shape: tuple[int, ...]

    @property
    def children(self) -> tuple[Expr, ...]:
        return self.operands

    def read(self, region: Region, reader: Reader) -> Array:
        values = [to_mx(_contiguous(o.read(full(o.shape), reader)), o.dtype) for o in self.operands]
        return from_mx(_on_cpu(self.function, values))[as_slices(region)]


def _contiguous(values: Array) -> Array:
    """Row-major values of the same shape; numpy's function makes 0-d arrays 1-d."""
    return np.ascontiguousarray(values).reshape(values.shape)


def _on_cpu(function: Callable[..., Any], values: list[Any]) -> Any:
    """Evaluate on MLX's CPU stream: the same rounding everywhere, and float64 works."""
    import mlx.core as mx

    with mx.stream(mx.cpu):
        result = function(*values)
        mx.eval(result)
    return result


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


def whole_bytes(expr: Expr) -> int:
    """Bytes of the largest tensors that an expression cannot read by region."""
    own = sum(o.nbytes for o in expr.children) if isinstance(expr, Whole) else 0
    return max((own, *(whole_bytes(child) for child in expr.children)))


def _decoded(value: Any, dtype: DType) -> Any:
    """Values of an fp8 bit pattern, which MLX holds as uint8; other arrays as they are."""
    import mlx.core as mx

    if dtype.name == "F8_E4M3":
        return mx.from_fp8(value, dtype=mx.float32)
    if dtype.name == "F8_E5M2":  # the upper byte of a float16
        return mx.left_shift(value.astype(mx.uint16), 8).view(mx.float16)
    if dtype.name == "F8_E8M0":  # an exponent alone; 255 is NaN, 0 a subnormal float32
        return mx.where(value == 255, mx.nan, mx.power(2.0, value.astype(mx.float32) - 127.0))
    return value


def cast(expr: Expr, dtype: DType) -> Expr:
    """The values in another dtype, rounded to nearest even, as MLX's `astype` does.

    fp8 operands (e4m3, e5m2, e8m0) are decoded to the numbers that their bits mean.
    """
    if expr.dtype == dtype:
        return expr
    name, convert, inverse, forward = _conversion(expr.dtype, dtype)
    return Apply(name, convert, (expr,), dtype, expr.shape, inverse=inverse, forward=forward)


@cache
def _conversion(old: DType, new: DType) -> tuple[str, _Unary, _Unary, _Unary]:
    """Name, MLX function, inverse and torch function of a cast; the same ones for all tensors."""

    def convert(value: Any) -> Any:
        import mlx.core as mx

        return _decoded(value, old).astype(getattr(mx, str(new.mx_name)))

    def inverse(value: Any) -> Any:
        return value

    def forward(value: Any) -> Any:
        import torch

        return value.to(getattr(torch, new.torch_name))

    return f"astype {new}", convert, inverse, forward
