"""Affine round-to-nearest quantization in numpy, with the bytes of `mx.quantize`.

MLX's CPU kernel handles one value at a time.  Here every step is one vector operation over a
block that fits a core's cache, with the values of many groups side by side:

    row 0 (one group)  0 1 2 3 4 5 6 7 | 8 9 ...     even, unit 0:  row 0: 0 2 4 6, row 1: 0 2 ...
    row 1              0 1 2 3 4 5 6 7 | 8 9 ...  →        unit 1:  row 0: 8 ...
    ...                                              odd,  unit 0:  row 0: 1 3 5 7, row 1: 1 3 ...

A unit is eight values, because eight codes of any width fill whole bytes.  In that order the
extremes of groups are extremes of whole lines, scales and biases are one line for all lines, and
even and odd codes are paired by one shift and one OR.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from torch2mlx.dtypes import DType

__all__ = ["quantize_affine"]

Array = np.ndarray[Any, Any]

_BLOCK = 1 << 17
"""Values in work at a time; they take 8 to 14 bytes each, input and codes included."""

_UNIT = 8

_SMALLEST_STEP = np.float32(1e-7)

_ROUNDER = np.float32(1.5 * 2**23)
"""Adjacent float32 values are 1 apart here: adding it rounds a small number to the nearest
integer, ties to even, and leaves that integer in the low bits."""


def quantize_affine(
    rows: Array, dtype: DType, bits: int, group_size: int
) -> tuple[Array, Array, Array] | None:
    """Quantize rows as `mx.quantize(mode="affine")` does on the CPU, byte for byte.

    Args:
        rows: bit view `[..., n, in]` of BF16, F16 or F32 values, `in` a multiple of the group.
        dtype: what the bits mean.
        bits: 2, 3, 4, 5, 6 or 8.
        group_size: a multiple of 8.

    Returns:
        Packed codes `[..., n, in * bits / 32]` (uint32), then scales and biases
        `[..., n, in / group_size]` (bit views of the dtype).  None if a group holds NaN or Inf,
        or values whose range or steps leave float32: what MLX then does follows no rule.
    """
    groups = np.ascontiguousarray(rows).reshape(-1, group_size)
    count, units = len(groups), group_size // _UNIT
    words = np.empty(count * group_size * bits // 32, "<u4")
    octets = words.view(np.uint8).reshape(count, units, bits)
    scales = np.empty(count, np.float32)
    biases = np.empty(count, np.float32)

    height = min(count, _BLOCK // group_size)
    values = np.empty(height * group_size, np.float32)
    units_of_rows = np.empty(height * group_size * dtype.itemsize // 16, np.complex128)
    # Pairs of codes are formed in place: a byte holds two of at most four bits.
    codes = np.empty(height * group_size, "<u1" if bits <= 4 else "<u2")
    for start in range(0, count, height or 1):
        block = slice(start, min(start + height, count))
        size = (block.stop - start) * group_size
        halves = values[:size].reshape(2, units, -1)
        _spread(groups[block], dtype, units_of_rows[: size * dtype.itemsize // 16], halves)
        lines = halves.reshape(2 * units, -1)
        found = _scales_and_biases(_fold(np.minimum, lines), _fold(np.maximum, lines), bits)
        if found is None or (dtype.name == "F16" and np.abs(found[1]).max() >= 2.0**16):
            return None
        scales[block], biases[block] = scale, bias = found
        lines -= bias.repeat(_UNIT // 2)
        lines /= scale.repeat(_UNIT // 2)
        lines += _ROUNDER
        _pack(halves, codes[:size].reshape(halves.shape), bits, octets[block])

    shape = (*rows.shape[:-1], rows.shape[-1] // group_size)
    return (
        words.reshape(*shape[:-1], shape[-1] * group_size * bits // 32),
        _rounded(scales, dtype).reshape(shape),
        _rounded(biases, dtype).reshape(shape),
    )


def _spread(groups: Array, dtype: DType, scratch: Array, halves: Array) -> None:
    """Write groups `[n, group]` as float32 `[even or odd, group / 8, n * 4]`.

    Transposing is cheap in pieces of 16 bytes, which numpy moves as complex128.
    """
    count, units = len(groups), halves.shape[1]
    if dtype.itemsize == 4:
        pairs = groups.reshape(-1, 2)
        parted = scratch.view(np.float32).reshape(2, -1)
        parted[0], parted[1] = pairs[:, 0], pairs[:, 1]
        halves.view(np.complex128)[:] = scratch.reshape(2, count, units).transpose(0, 2, 1)
        return
    scratch = scratch.reshape(units, count)
    scratch[:] = groups.view(np.complex128).T
    # A little-endian 32-bit word holds the even value below the odd one.
    pairs = scratch.view("<u4")
    bits = halves.view("<u4")
    np.left_shift(pairs, np.uint32(16), out=bits[0])
    np.bitwise_and(pairs, np.uint32(0xFFFF0000), out=bits[1])
    if dtype.name == "F16":
        # The exponent gets its float32 width from copies of the sign bit, which are cleared;
        # the multiplication mends its offset and normalizes subnormals.  Inf and NaN come out
        # as numbers from 2^16.
        signed = bits.view("<i4")
        signed >>= np.int32(3)
        bits &= np.uint32(0x8FFFFFFF)
        halves *= np.float32(2.0**112)


def _fold(extreme: np.ufunc, lines: Array) -> Array:
    """The minimum or maximum of each group of lines `[group / 4, n * 4]`: `[n]`."""
    found: Array = extreme.reduce(lines, axis=0)
    for _ in range(2):
        found = extreme(found[0::2], found[1::2])
    return found


def _scales_and_biases(low: Array, high: Array, bits: int) -> tuple[Array, Array] | None:
    """Float32 scales and biases of groups with these extremes; None if some are not finite.

    The bias is the extreme of larger magnitude, and the scale is moved so that zero is a
    multiple of it away.  Signs are handled apart from magnitudes: their pattern is random, and
    a choice by mask would cost more than all the arithmetic.
    """
    with np.errstate(all="ignore"):
        below, above = np.abs(low), np.abs(high)
        # Negative, as -0, for a tie: MLX then takes the high end.
        sign = np.negative(above - below)
        edge = np.maximum(below, above)
        step = high - low
        step /= np.float32(2**bits - 1)
        np.maximum(step, _SMALLEST_STEP, out=step)
        multiple = edge / step
        np.rint(multiple, out=multiple)
        scale = edge / multiple
        bias = np.copysign(edge, low + high)
        # A sum is the cheapest test: it is finite only if all terms are.
        if not (np.isfinite(scale.sum()) and np.isfinite(multiple.sum())):
            zero = multiple == 0
            scale[zero] = step[zero]
            bias[zero] = 0.0
            if not (np.isfinite(scale).all() and scale.all()):
                return None
        return np.copysign(scale, sign), bias


def _pack(halves: Array, codes: Array, bits: int, octets: Array) -> None:
    """Pack rounded values `[2, group / 8, n * 4]` into bytes `[n, group / 8, bits]`.

    Codes are their low bits; they are merged into pairs, fours and eights, lowest first, in the
    scratch array `codes`.
    """
    number = codes.dtype.type
    np.copyto(codes, halves.view("<u4"), casting="unsafe")
    np.clip(codes, number(0), number(2**bits - 1), out=codes)
    codes[1] *= number(2**bits)
    codes[0] |= codes[1]
    lane = 8 * codes.itemsize
    merged = codes[0].view(f"<u{lane // 2}")
    word = merged.dtype.type
    if gap := lane - 2 * bits:
        for fold in (1, 2):
            width = 2 * bits * fold
            keep = sum((1 << width) - 1 << at for at in range(0, 4 * lane, 2 * lane * fold))
            upper = merged >> word(gap * fold)
            upper &= word(keep << width)
            merged &= word(keep)
            merged |= upper
    if bits in (2, 4, 8):
        np.copyto(octets.view(f"<u{bits}")[..., 0], merged.T, casting="unsafe")
        return
    piece = "<u2" if bits == 6 else "<u1"
    target = octets.view(piece)
    source = np.ascontiguousarray(merged.T).view(piece).reshape(*target.shape[:2], -1)
    for at in range(target.shape[-1]):
        target[..., at] = source[..., at]


def _rounded(values: Array, dtype: DType) -> Array:
    """The bit view of finite float32 values, rounded to nearest even."""
    if dtype.name != "BF16":
        with np.errstate(over="ignore"):
            rounded: Array = values.astype(dtype.numpy, copy=False)
            return rounded
    bits: Array = values.view("<u4")
    bits = bits + (bits >> 16 & 1)
    bits += np.uint32(0x7FFF)
    bits >>= np.uint32(16)
    return bits.astype(dtype.numpy)
