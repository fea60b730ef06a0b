"""Tensors that no file holds as they are: adapters merged into them, packed codes decoded.

Such a tensor is a leaf for everything that runs backwards: an audit compares what was written
with its values, however a port moved, cut and stacked them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from torch2mlx.dtypes import DType
from torch2mlx.planning.expressions import Expr, Reader, Stored
from torch2mlx.planning.regions import Region, as_slices
from torch2mlx.quantization.floats import as_float32, e8m0_values, small_float_values

__all__ = ["Computed", "as_floats"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False, slots=True)
class Computed(Stored):
    """A tensor of the checkpoint that is computed from stored ones, region by region.

    Attributes:
        name: of the tensor in the checkpoint's state.
        how: the computation with its constants, for printing and for the identity of a plan.
        function: takes a region with steps of 1 and a reader, returns the values as a bit view.
            What it returns for an element must not depend on the region around it.
        operands: the stored tensors that it reads; no children, since the way back ends here.
    """

    name: str
    how: str
    function: Callable[[Region, Reader], Array]
    operands: tuple[Expr, ...]
    dtype: DType
    shape: tuple[int, ...]

    def read(self, region: Region, reader: Reader) -> Array:
        if not all(map(len, region)):
            return np.empty(tuple(map(len, region)), self.dtype.numpy)
        hull = tuple(range(min(r[0], r[-1]), max(r[0], r[-1]) + 1) for r in region)
        values = self.function(hull, reader)
        if hull == region:
            return values
        inside = tuple(
            range(r.start - h.start, r.stop - h.start, r.step)
            for r, h in zip(region, hull, strict=True)
        )
        return values[as_slices(inside)]


def as_floats(bits: Array, dtype: DType) -> Array:
    """The numbers of a bit view in float32 (float64 stays), exactly."""
    if dtype.name == "F64":
        return bits
    if dtype.name == "F8_E4M3":
        return small_float_values(3, 8)[bits]
    if dtype.name == "F8_E5M2":  # the upper byte of a float16
        return (bits.astype("<u2") << 8).view("<f2").astype(np.float32)
    if dtype.name == "F8_E8M0":
        return e8m0_values()[bits]
    return as_float32(bits, dtype)
