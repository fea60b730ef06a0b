"""Bit patterns of floating-point formats as float32 values."""

from __future__ import annotations

from typing import Any

import numpy as np

from torch2mlx.dtypes import DType

__all__ = ["as_float32", "e8m0_values", "small_float_values"]

Array = np.ndarray[Any, Any]


def as_float32(bits: Array, dtype: DType) -> Array:
    """The values of a BF16, F16 or F32 bit view, exactly."""
    if dtype.name == "BF16":
        return (bits.astype("<u4") << 16).view("<f4")
    return bits.astype(np.float32)


def small_float_values(mantissa: int, bits: int) -> Array:
    """Values of the codes of a sign-exponent-mantissa float: E2M1 (1, 4) or E4M3 (3, 8).

    Formats of the OCP microscaling specification v1.0; neither has an infinity, and E4M3 has
    one NaN for each sign, all ones.
    """
    exponent_bits = bits - 1 - mantissa
    bias = 2 ** (exponent_bits - 1) - 1
    codes = np.arange(2**bits)
    exponent = codes >> mantissa & 2**exponent_bits - 1
    fraction = (codes & 2**mantissa - 1) / 2**mantissa
    normal = exponent > 0
    magnitude = (fraction + normal) * 2.0 ** (np.where(normal, exponent, 1) - bias)
    if bits == 8:
        magnitude[codes & 127 == 127] = np.nan
    signed: Array = np.where(codes >> bits - 1, -magnitude, magnitude).astype(np.float32)
    return signed


def e8m0_values() -> Array:
    """Values of E8M0 scale bytes: powers of two, 2^-127 first; 255 is Inf as MLX decodes it
    (the specification has NaN there; no finite weight gets it).
    """
    words = np.arange(256, dtype=np.uint32) << 23
    words[0] = 1 << 22
    scales: Array = words.view(np.float32)
    return scales
