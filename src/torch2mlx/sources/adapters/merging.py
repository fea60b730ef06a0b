"""A low-rank change merged into a weight, rows at a time, in float32 or better.

Products are formed in float64 on tiles of fixed rows, so an element has the same bits whatever
block it is asked for in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from torch2mlx.dtypes import DTYPES
from torch2mlx.errors import NumericError
from torch2mlx.planning.computed import Computed, as_floats
from torch2mlx.planning.expressions import Expr, Reader
from torch2mlx.planning.regions import Region, full

__all__ = ["LowRank", "added", "merged"]

Array = np.ndarray[Any, Any]

_TILE = 64  # rows


@dataclass(frozen=True)
class LowRank:
    """scale * left @ right, to be added to a weight [rows, columns].

    Attributes:
        left: [rows, rank].
        right: [rank, columns].
        scale: factor of the product.
        magnitude: [rows], the length that every row gets afterwards (DoRA), or None.
    """

    left: Expr
    right: Expr
    scale: float
    magnitude: Expr | None = None

    @property
    def operands(self) -> tuple[Expr, ...]:
        """The stored tensors."""
        parts = (self.left, self.right)
        return parts if self.magnitude is None else (*parts, self.magnitude)


def merged(name: str, base: Expr, change: LowRank) -> Computed:
    """The weight with its change, float32.

    Args:
        name: of the weight in the checkpoint.
        base: [rows, columns].
        change: of matching shape.
    """
    kind = "LoRA" if change.magnitude is None else "DoRA"
    how = f"merge {kind}, rank {change.right.shape[0]}, scale {change.scale!r}"
    return Computed(
        name, how, _Merge(name, base, change), (base, *change.operands), DTYPES["F32"], base.shape
    )


@dataclass(frozen=True)
class _Merge:
    """The function of a merged weight."""

    name: str
    base: Expr
    change: LowRank

    def __call__(self, region: Region, reader: Reader) -> Array:
        rows, columns = region
        right = _numbers(self.change.right, full(self.change.right.shape), reader)
        first = rows.start - rows.start % _TILE
        result = np.empty((len(rows), len(columns)), np.float32)
        for start in range(first, rows.stop, _TILE):
            tile = self._tile(range(start, min(start + _TILE, self.base.shape[0])), right, reader)
            lo, hi = max(start, rows.start), min(start + len(tile), rows.stop)
            part = tile[lo - start : hi - start, columns.start : columns.stop]
            result[lo - rows.start : hi - rows.start] = part
        return result

    def _tile(self, rows: range, right: Array, reader: Reader) -> Array:
        change = self.change
        left = _numbers(change.left, (rows, range(change.left.shape[1])), reader)
        tile: Array = left @ right
        tile *= change.scale
        tile += _numbers(self.base, (rows, range(self.base.shape[1])), reader)
        if change.magnitude is not None:
            norm = np.sqrt(np.einsum("ij,ij->i", tile, tile))
            if not norm.all():
                raise NumericError(
                    f"{self.name}: row {rows.start + int(np.argmin(norm))} is all zero, so the "
                    "adapter's magnitude (DoRA) has no direction; train the adapter anew"
                )
            tile *= (_numbers(change.magnitude, (rows,), reader) / norm)[:, None]
        return tile


def _numbers(expr: Expr, region: Region, reader: Reader) -> Array:
    return as_floats(expr.read(region, reader), expr.dtype).astype(np.float64)


def added(name: str, base: Expr, extra: Expr, scale: float) -> Computed:
    """Base + scale * extra of one shape, float32: the bias that an adapter adds."""

    def function(region: Region, reader: Reader) -> Array:
        total = _numbers(base, region, reader) + scale * _numbers(extra, region, reader)
        return total.astype(np.float32)

    return Computed(
        name, f"add, scale {scale!r}", function, (base, extra), DTYPES["F32"], base.shape
    )
