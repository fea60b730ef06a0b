"""Weights of small floats: fp8 (e4m3) or fp4 (e2m1, two to a byte) times the scale of their block.

Covers block-, row- and tensor-wise fp8, MXFP8, MXFP4 and NVFP4.  Blocks have rows and columns;
those of MLX have blocks of one row, and scales that are powers of two (mxfp4, mxfp8) or E4M3
(nvfp4).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from torch2mlx.dtypes import DTYPES, DType
from torch2mlx.planning.computed import Computed, as_floats
from torch2mlx.planning.expressions import Bits, Expr, Reader
from torch2mlx.planning.regions import Region, full
from torch2mlx.quantization.floats import small_float_values
from torch2mlx.sources.base import Packed
from torch2mlx.sources.packed.weight import PackedWeight

__all__ = ["SmallFloats", "float_weight"]

Array = np.ndarray[Any, Any]

_GROUPS = {"mxfp8": 32, "mxfp4": 32, "nvfp4": 16}
_SCALES = {"mxfp8": "F8_E8M0", "mxfp4": "F8_E8M0", "nvfp4": "F8_E4M3"}


@dataclass(frozen=True)
class SmallFloats:
    """A tensor [..., out, in] as a file holds it.

    Attributes:
        name: of the weight, for messages.
        codes: fp8 [..., out, in], or U8 [..., out, in / 2] with the first element in the low half.
        scales: [..., out / block rows, in / block columns], as numbers of their dtype (E8M0 for
            exponents).
        block: rows and columns that share a scale; the last ones may be cut short.
        factor: one number for all, or None.
        divide: `factor` divides; otherwise it multiplies.
    """

    name: str
    codes: Expr
    scales: Expr
    block: tuple[int, int]
    factor: Expr | None = None
    divide: bool = False

    def __post_init__(self) -> None:
        if self.factor is not None and self.factor.size != 1:
            raise ValueError(f"{self.name}: a factor {list(self.factor.shape)} for all weights")

    @property
    def fp4(self) -> bool:
        """Two elements to a byte."""
        return self.codes.dtype.name == "U8"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        shape = self.codes.shape
        return (*shape[:-1], shape[-1] * 2) if self.fp4 else shape

    def __call__(self, region: Region, reader: Reader) -> Array:
        """float32 values of a region."""
        *lead, rows, columns = region
        scales = self._scales(tuple(lead), rows, np.arange(columns.start, columns.stop), reader)
        if not self.fp4:
            values = as_floats(self.codes.read(region, reader), self.codes.dtype)
            return np.multiply(values, scales, dtype=np.float32)
        octets = range(columns.start // 2, -(-columns.stop // 2))
        codes = self.codes.read((*lead, rows, octets), reader)
        both = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:-1], -1)
        first = columns.start - octets.start * 2
        part = both[..., first : first + len(columns)]
        return np.multiply(small_float_values(1, 4)[part], scales, dtype=np.float32)

    def _scales(self, lead: Region, rows: range, columns: Array, reader: Reader) -> Array:
        """float32 scales of the elements in some rows and ascending columns."""
        at = [np.arange(rows.start, rows.stop) // self.block[0], columns // self.block[1]]
        part = tuple(range(int(i[0]), int(i[-1]) + 1) for i in at)
        found = self._stored((*lead, *part), reader)
        spread: Array = found[..., (at[0] - at[0][0])[:, None], (at[1] - at[1][0])[None, :]]
        return spread

    def _stored(self, region: Region, reader: Reader) -> Array:
        scales = as_floats(self.scales.read(region, reader), self.scales.dtype)
        if self.factor is None:
            return scales.astype(np.float32, copy=False)
        factor = as_floats(self.factor.read(full(self.factor.shape), reader), self.factor.dtype)
        factor = factor.reshape(()).astype(np.float32)
        scaled: Array = scales / factor if self.divide else scales * factor
        return scaled

    @property
    def operands(self) -> tuple[Expr, ...]:
        """The stored tensors."""
        parts = (self.codes, self.scales)
        return parts if self.factor is None else (*parts, self.factor)

    @property
    def mode(self) -> str | None:
        """The format of MLX that may hold these codes, or None."""
        columns = self.block[1]
        wanted = ("mxfp8",) if not self.fp4 else ("mxfp4", "nvfp4")
        width = self.shape[-1]
        if self.codes.dtype.name not in ("U8", "F8_E4M3"):
            return None
        for mode in wanted:
            group = _GROUPS[mode]
            if columns % group == 0 and width % group == 0:
                return mode
        return None

    def scale_dtype(self, reader: Reader) -> DType | None:
        """U8 where all scales are exact in a format of MLX, else None."""
        mode = self.mode
        if mode is None:
            return None
        if self.factor is None and self.scales.dtype.name == _SCALES[mode]:
            return DTYPES["U8"]
        scales = self._stored(full(self.scales.shape), reader)
        encoded = _encoded(scales, mode)
        with np.errstate(over="ignore"):
            back = as_floats(encoded, DTYPES[_SCALES[mode]])
        return DTYPES["U8"] if np.array_equal(back, scales) else None

    def grid(self, dtype: DType, transposed: bool = False) -> Packed:
        """The tensors of MLX's format."""
        mode = self.mode
        assert mode is not None
        group = _GROUPS[mode]
        shape = (*self.shape[:-1], self.shape[-1] // group)

        def scales(region: Region, reader: Reader) -> Array:
            *lead, rows, groups = region
            firsts = np.arange(groups.start, groups.stop) * group
            return _encoded(self._scales(tuple(lead), rows, firsts, reader), mode)

        return Packed(
            4 if self.fp4 else 8,
            group,
            Bits(self.codes, DTYPES["U32"]),
            Computed(f"{self.name}#scales", mode, scales, self.operands[1:], dtype, shape),
            None,
            mode,
            transposed,
        )


def float_weight(floats: SmallFloats, transposed: bool = False) -> PackedWeight:
    """The weight of such a tensor."""
    how = f"decode {'fp4' if floats.fp4 else floats.codes.dtype}, blocks of {floats.block}"
    value = Computed(floats.name, how, floats, floats.operands, DTYPES["F32"], floats.shape)
    grid = partial(floats.grid, transposed=transposed)
    return PackedWeight(value, floats.scale_dtype, grid, transposed)


def _encoded(scales: Array, mode: str) -> Array:
    """Scale bytes of a format of MLX; of numbers that it lacks, any."""
    if mode == "nvfp4":
        import torch

        array = torch.from_numpy(np.array(scales, np.float32)).to(torch.float8_e4m3fn)
        codes: Array = array.view(torch.uint8).numpy()
        return codes
    # A power of two is its exponent; 2^-127 is subnormal.
    words = np.ascontiguousarray(scales, np.float32).view(np.uint32)
    return np.where(words == 1 << 22, 0, words >> 23).astype(np.uint8)
