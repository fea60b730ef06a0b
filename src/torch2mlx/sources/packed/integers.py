"""Weights of unsigned integers: (code - zero point) * scale, in groups along a row.

All formats of integers come down to this once their codes lie as MLX packs them: along the input
axis, from the lowest bit of 32-bit words up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from torch2mlx.dtypes import DTYPES, DType
from torch2mlx.errors import SourceError
from torch2mlx.planning.computed import Computed, as_floats
from torch2mlx.planning.expressions import Expr, Reader
from torch2mlx.planning.regions import Region, full
from torch2mlx.quantization.kernel import pack_codes, unpack_codes
from torch2mlx.sources.base import Packed
from torch2mlx.sources.packed.weight import PackedWeight, group_size_of

__all__ = ["Integers", "integer_weight", "repacked_words"]

Array = np.ndarray[Any, Any]

_LANES = 32  # codes that begin and end at words, whatever their bits
_MLX_BITS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class Integers:
    """A matrix [out, in] as a file holds it.

    Attributes:
        name: of the weight, for messages.
        bits: of a code.
        group: codes of a row that share a scale.
        width: of a row.
        words: U32 [out, ceil(in * bits / 32)], as MLX packs codes.
        scales: floating, [out, in / group].
        zeros: integers [out, in / group], or one for all.
        order: I32 [in], the group of each input, where they are not consecutive; checked when it
            is read.
    """

    name: str
    bits: int
    group: int
    width: int
    words: Expr
    scales: Expr
    zeros: Expr | int
    order: Expr | None = None

    def __post_init__(self) -> None:
        expected = (*self.scales.shape[:1], -(-self.width * self.bits // 32))
        if self.words.shape != expected or len(self.scales.shape) != 2:
            raise ValueError(
                f"{self.name}: codes {list(self.words.shape)} with scales "
                f"{list(self.scales.shape)}, expected {list(expected)}"
            )
        zeros = self.zeros if isinstance(self.zeros, Expr) else self.scales
        if min(self.bits, self.group, self.width) < 1 or zeros.shape != self.scales.shape:
            raise ValueError(
                f"{self.name}: {self.bits} bits in groups of {self.group}, rows of {self.width}, "
                f"zero points {list(zeros.shape)} for scales {list(self.scales.shape)}"
            )
        if self.order is not None and self.order.dtype.name not in ("I32", "I64"):
            raise ValueError(f"{self.name}: g_idx of {self.order.dtype} instead of I32")

    def __call__(self, region: Region, reader: Reader) -> Array:
        """float32 values of a region."""
        rows, columns = region
        first = columns.start - columns.start % _LANES
        stop = min(-(-columns.stop // _LANES) * _LANES * self.bits // 32, self.words.shape[1])
        words = self.words.read((rows, range(first * self.bits // 32, stop)), reader)
        codes = _codes(words, self.bits)
        inside = slice(columns.start - first, columns.stop - first)
        values = codes[:, inside].astype(np.float32)
        groups = self.groups(columns, reader)
        low, high = int(groups.min()), int(groups.max()) + 1
        part = (rows, range(low, high))
        at = groups - low
        if isinstance(self.zeros, int):
            values -= self.zeros
        else:
            values -= self.zeros.read(part, reader).astype(np.float32)[:, at]
        values *= as_floats(self.scales.read(part, reader), self.scales.dtype)[:, at]
        return values

    def groups(self, columns: range, reader: Reader) -> Array:
        """The group of each of some inputs.

        Raises:
            SourceError: the file's own order names groups that do not exist.
        """
        if self.order is None:
            return np.arange(columns.start, columns.stop) // self.group
        order = self.order.read((columns,), reader)
        if order.size and (order == -1).all():  # as compressed-tensors marks inputs in order
            return np.arange(columns.start, columns.stop) // self.group
        count = self.scales.shape[1]
        if order.min(initial=0) < 0 or order.max(initial=0) >= count:
            raise SourceError(
                f"{self.name}: g_idx has values from {order.min()} to {order.max()}, but there are "
                f"{count} groups; the file is damaged, get another copy"
            )
        return order

    @property
    def operands(self) -> tuple[Expr, ...]:
        """The stored tensors."""
        found = (self.words, self.scales, self.zeros, self.order)
        return tuple(x for x in found if isinstance(x, Expr))

    def scale_dtype(self, reader: Reader) -> DType | None:
        """The dtype that MLX's scales and biases need to be exact; None: MLX has no such grid."""
        if self.bits not in _MLX_BITS or group_size_of(self.group, self.width) is None:
            return None
        if self.words.shape[1] * 32 != self.width * self.bits or self.scales.dtype.name == "F64":
            return None
        if self.order is not None:
            found = self.groups(range(self.width), reader)
            if not np.array_equal(found, np.arange(self.width) // self.group):
                return None
        own = self.scales.dtype
        if own.name == "F32":
            # scale * code must be a float32 too: the scale leaves room for the code's bits.
            words = self.scales.read(full(self.scales.shape), reader).view(np.uint32)
            if (words & np.uint32(2**self.bits - 1)).any():
                return None
        elif self._exact_in(own, reader):
            return own
        return DTYPES["F32"] if self._exact_in(DTYPES["F32"], reader) else None

    def _exact_in(self, dtype: DType, reader: Reader) -> bool:
        """Whether -scale * zero point is a number of a dtype, for every group."""
        whole = full(self.scales.shape)
        biases = self._biases(whole, reader)
        return np.array_equal(as_floats(_rounded(biases, dtype), dtype), biases)

    def _biases(self, region: Region, reader: Reader) -> Array:
        scales = as_floats(self.scales.read(region, reader), self.scales.dtype)
        zeros = self.zeros if isinstance(self.zeros, int) else self.zeros.read(region, reader)
        product: Array = -(scales.astype(np.float64) * zeros)
        return product

    def grid(self, dtype: DType) -> Packed:
        """The tensors of MLX's affine format, scales and biases in `dtype`."""
        group = group_size_of(self.group, self.width)
        assert group is not None
        repeat = self.group // group
        shape = (self.scales.shape[0], self.width // group)

        def scales(region: Region, reader: Reader) -> Array:
            part, at = _repeated(region, repeat)
            found = as_floats(self.scales.read(part, reader), self.scales.dtype)
            return _rounded(found, dtype)[:, at]

        def biases(region: Region, reader: Reader) -> Array:
            part, at = _repeated(region, repeat)
            return _rounded(self._biases(part, reader), dtype)[:, at]

        how = f"each {repeat} times"
        operands = tuple(x for x in (self.scales, self.zeros) if isinstance(x, Expr))
        return Packed(
            self.bits,
            group,
            self.words,
            Computed(f"{self.name}#scales", how, scales, operands, dtype, shape),
            Computed(f"{self.name}#biases", how, biases, operands, dtype, shape),
        )


def integer_weight(integers: Integers) -> PackedWeight:
    """The weight of such a matrix."""
    how = (
        f"decode {integers.bits} bits, groups of {integers.group}, zero point "
        f"{integers.zeros if isinstance(integers.zeros, int) else 'stored'}"
    )
    shape = (integers.words.shape[0], integers.width)
    value = Computed(integers.name, how, integers, integers.operands, DTYPES["F32"], shape)
    return PackedWeight(value, integers.scale_dtype, integers.grid)


def repacked_words(
    name: str,
    how: str,
    bits: int,
    shape: tuple[int, int],
    codes: Callable[[range, range, Reader], Array],
    operand: Expr,
) -> Computed:
    """`Integers.words` of codes that a file holds in another order.

    Args:
        name: of the weight.
        how: what the codes are.
        bits: of a code.
        shape: of the weight; rows are whole multiples of 32 codes.
        codes: uint8 codes of some rows and columns.
        operand: the stored tensor that they are in.
    """

    def words(region: Region, reader: Reader) -> Array:
        rows, columns = region
        first = columns.start // bits * _LANES  # `bits` words hold 32 codes
        stop = -(-columns.stop // bits) * _LANES
        whole = pack_codes(codes(rows, range(first, stop), reader), bits)
        start = columns.start - first * bits // _LANES
        return np.ascontiguousarray(whole[:, start : start + len(columns)])

    extents = (shape[0], shape[1] * bits // _LANES)
    return Computed(f"{name}#codes", how, words, (operand,), DTYPES["U32"], extents)


def _codes(words: Array, bits: int) -> Array:
    """Codes of whole words; the last ones of a row may be padding."""
    if bits in (2, 4, 8):
        return unpack_codes(words, bits)
    short = -words.shape[1] % bits  # a period of `bits` words holds 32 codes
    if short:
        words = np.pad(words, ((0, 0), (0, short)))
    return unpack_codes(words, bits)


def _repeated(region: Region, repeat: int) -> tuple[Region, Array]:
    """The stored groups under some of MLX's, and where each of these is among them."""
    rows, columns = region
    groups = np.arange(columns.start, columns.stop) // repeat
    return (rows, range(int(groups[0]), int(groups[-1]) + 1)), groups - groups[0]


def _rounded(values: Array, dtype: DType) -> Array:
    """Bit view of numbers in BF16, F16 or F32; those that are of the dtype keep their value."""
    if dtype.name == "BF16":  # truncation: exact for the numbers that are kept
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    with np.errstate(over="ignore"):
        return values.astype(dtype.numpy)
