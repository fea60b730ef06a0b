"""Blocks of output tensors: which rows, what they become, and whether they are sound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from torch2mlx.dtypes import DType
from torch2mlx.errors import NumericError
from torch2mlx.planning.expressions import Expr, Reader, sources_of
from torch2mlx.planning.functions import Apply
from torch2mlx.planning.plan import Output
from torch2mlx.planning.regions import Region, full
from torch2mlx.planning.shards import ShardPlan
from torch2mlx.quantization.scheme import Scheme

__all__ = ["Part", "parts_of", "row_regions"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Part:
    """An expression whose blocks go to known places of one file.

    Attributes:
        name: for messages.
        expr: the values.
        scheme: how they are quantized on the way, or None.
        places: for each tensor that is written, by suffix ("" where nothing is quantized), its
            offset in the file and the bytes of one row.
        finite: NaN and Inf are errors.
    """

    name: str
    expr: Expr
    scheme: Scheme | None
    places: Mapping[str, tuple[int, int]]
    finite: bool = True

    def pieces(self, before: int, region: Region, reader: Reader) -> list[tuple[int, Array]]:
        """[(file offset, values)] of one region, which has `before` rows before it.

        Raises:
            NumericError: NaN, Inf or overflow; names tensor and rows.
        """
        values = np.ascontiguousarray(self.expr.read(region, reader))
        if self.finite:
            _check_finite(values, self.name, self.expr, region, reader)
        found: Mapping[str, Array] = {"": values}
        if self.scheme is not None:
            from torch2mlx.quantization.kernel import quantize_rows

            rows = values.reshape(-1, self.expr.shape[-1])
            found = quantize_rows(rows, self.expr.dtype, self.scheme)
        return [
            (offset + before * row, found[suffix]) for suffix, (offset, row) in self.places.items()
        ]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in the widest form that it takes on its way."""
        width = self.expr.shape[-1] if self.expr.shape else 1
        stored = (leaf.dtype.itemsize for leaf in sources_of(self.expr))
        return width * max(self.expr.dtype.itemsize, *stored, 1)


def parts_of(output: Output, shard: ShardPlan) -> list[Part]:
    """What of an output is in a shard: one part, or up to three that are quantized already."""
    here = {spec.name: spec for spec in output.specs if spec.name in shard.offsets}
    module = output.name.removesuffix("weight")
    if output.parts is not None:
        return [
            _plain(module + suffix, expr, shard)
            for suffix, expr in output.parts.items()
            if module + suffix in here
        ]
    if not here:
        return []
    if output.scheme is None:
        return [_plain(output.name, output.expr, shard, output.finite)]
    places = {
        name.removeprefix(module): (shard.offsets[name], spec.shape[-1] * spec.dtype.itemsize)
        for name, spec in here.items()
    }
    return [Part(output.name, output.expr, output.scheme, places)]


def _plain(name: str, expr: Expr, shard: ShardPlan, finite: bool = True) -> Part:
    row = (expr.shape[-1] if expr.shape else 1) * expr.dtype.itemsize
    return Part(name, expr, None, {"": (shard.offsets[name], row)}, finite)


def row_regions(shape: tuple[int, ...], row_bytes: int, block: int) -> Iterator[tuple[int, Region]]:
    """Cut a tensor into regions of whole trailing axes that are contiguous in row-major order.

    Args:
        shape: of the tensor.
        row_bytes: bytes of one index of the last-but-one axis (a row of the last axis).
        block: wanted bytes a region.

    Yields:
        (number of rows before it, region); a "row" is one index over all axes but the last.
    """
    if len(shape) < 2:
        yield 0, full(shape)
        return
    rows_wanted = max(1, block // max(1, row_bytes))
    # The axis to cut: the outermost whose single index is no more than a block.
    axis = 0
    while axis < len(shape) - 2 and prod(shape[axis + 1 : -1]) > rows_wanted:
        axis += 1
    step = max(1, rows_wanted // max(1, prod(shape[axis + 1 : -1])))
    before = 0
    for outer in np.ndindex(*shape[:axis]):
        for start in range(0, shape[axis], step):
            stop = min(start + step, shape[axis])
            region = (
                *(range(i, i + 1) for i in outer),
                range(start, stop),
                *full(shape[axis + 1 :]),
            )
            yield before, region
            before += (stop - start) * prod(shape[axis + 1 : -1])


# Exponent masks: a value is NaN or Inf when all of its exponent bits are set.
_EXPONENT = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000, "F64": 0x7FF0000000000000}


def _is_finite(values: Array, dtype: DType) -> bool:
    mask = _EXPONENT.get(dtype.name)
    if mask is None or not values.size:
        return True
    bits = values.reshape(-1).view(f"<u{dtype.itemsize}")
    scratch = np.empty(min(bits.size, 1 << 17), bits.dtype)  # stays in the L2 cache
    for start in range(0, bits.size, scratch.size):
        part = bits[start : start + scratch.size]
        masked = np.bitwise_and(part, bits.dtype.type(mask), out=scratch[: part.size])
        if masked.max() == mask:
            return False
    return True


def _check_finite(values: Array, name: str, expr: Expr, region: Region, reader: Reader) -> None:
    """Raise NumericError if a block holds NaN or Inf, telling overflow from a bad source."""
    if not expr.dtype.floating or _is_finite(values, expr.dtype):
        return
    stored = ", ".join(dict.fromkeys(repr(leaf.name) for leaf in sources_of(expr)))
    rows = f"rows {region[0].start}-{region[0][-1]}" if region else "the value"
    before = expr
    while isinstance(before, Apply) and before.name.startswith("astype"):
        before = before.operands[0]
    if before is not expr:
        original = np.ascontiguousarray(before.read(region, reader))
        if _is_finite(original, before.dtype):
            raise NumericError(
                f"{name} (from {stored}), {rows}: finite in {before.dtype.torch_name}, but "
                f"overflows {expr.dtype.torch_name}; use --dtype bfloat16 or --dtype float32"
            )
    raise NumericError(
        f"{name} (from {stored}), {rows}: contains NaN or Inf; the checkpoint is damaged or its "
        "training diverged. Get another copy of it: nothing was written"
    )
