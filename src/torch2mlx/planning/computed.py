"""Tensors that no file holds as they are: adapters merged into them, packed codes decoded.

Such a tensor is a leaf for everything that runs backwards: an audit compares what was written
with its values, however a port moved, cut and stacked them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from torch2mlx.dtypes import DTYPES, DType
from torch2mlx.planning.expressions import Expr, Reader, Stored
from torch2mlx.planning.regions import Region, as_slices

__all__ = ["Computed", "as_floats", "from_floats"]

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
    """The numbers of a bit view in float32 (float64 stays), exactly.

    fp8 types are decoded by the tables of torch.
    """
    if dtype.name == "BF16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    if dtype.name.startswith("F8"):
        return _fp8_table(dtype.name)[bits]
    return bits if dtype.name in ("F32", "F64") else bits.astype(np.float32)


def from_floats(values: Array, dtype: DType) -> Array:
    """The bit view of numbers rounded to nearest even in a dtype of MLX's (BF16, F16, F32)."""
    if dtype.name == "BF16":
        import torch

        array = np.ascontiguousarray(values, np.float32)
        rounded: Array = torch.from_numpy(array).to(torch.bfloat16).view(torch.int16).numpy()
        return rounded.view(np.uint16)
    with np.errstate(over="ignore"):  # Inf is found and named where it is written
        return values.astype(dtype.numpy)


_TABLES: dict[str, Array] = {}


def _fp8_table(name: str) -> Array:
    if name not in _TABLES:
        import torch

        codes = torch.arange(256, dtype=torch.uint8)
        kind = getattr(torch, DTYPES[name].torch_name)
        _TABLES[name] = codes.view(kind).float().numpy()
    return _TABLES[name]
