"""Round-to-nearest into mxfp4 and nvfp4, with the bytes of `mx.quantize` on a CPU, faster.

MLX's CPU backend composes these two modes of general array operations, comparing every element
with all sixteen values; here the seven midpoints between magnitudes are compared instead.
The rules, established on MLX 0.32 (the tests compare with the installed one):

- scale = largest magnitude of the group / 6, then for mxfp4 the next power of two not below it
  and for nvfp4 the nearest E4M3 value;
- an element becomes the nearest value of E2M1, the smaller of two equally near, and +0 rather
  than -0;
- a group whose scale is zero is all zeros.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from torch2mlx.dtypes import DType
from torch2mlx.quantization.floats import as_float32
from torch2mlx.quantization.scheme import Scheme

__all__ = ["TINY", "quantize_fp4"]

Array = np.ndarray[Any, Any]

TINY = 2.0**-100
"""MX groups whose magnitudes are all below this are stored as zeros."""

_MIDPOINTS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
_LARGEST = 6.0  # of E2M1
_BLOCK = 1 << 16  # elements at a time, so that the intermediate arrays stay in the L2 cache


def quantize_fp4(bits: Array, dtype: DType, scheme: Scheme) -> tuple[Array, Array, Array]:
    """Codes and scales of rows.

    Args:
        bits: bit view `[n, in]` of BF16, F16 or F32 values.
        dtype: what the bits mean.
        scheme: mode "mxfp4" or "nvfp4".

    Returns:
        weight uint32 `[n, in / 8]`, scales uint8 `[n, in / group_size]`, and the indices of rows
        that are undecided here: they hold NaN, Inf or huge values, or a scale so near a power of
        two that MLX's logarithm settles it.  Their codes mean nothing.
    """
    n, width = bits.shape
    find_scales = _power_scales if scheme.mode == "mxfp4" else _e4m3_scales
    weight = np.empty((n, width // 2), np.uint8)
    scales = np.empty((n, width // scheme.group_size), np.uint8)
    undecided = np.zeros(n, np.bool_)
    rows = max(1, _BLOCK // width)
    for start in range(0, n, rows):
        stop = start + rows
        values = as_float32(bits[start:stop], dtype)
        groups = values.reshape(-1, width // scheme.group_size, scheme.group_size)
        magnitudes = np.abs(groups)
        largest = magnitudes.max(axis=-1)
        ideal = largest / np.float32(_LARGEST)
        if dtype.name == "F16":
            # MLX divides in the weight's dtype, which matters where float16 underflows.
            ideal = ideal.astype(np.float16).astype(np.float32)
        scales[start:stop], divisors, doubtful = find_scales(largest, ideal)
        with np.errstate(all="ignore"):
            magnitudes /= divisors[..., None]
        codes: Array = np.zeros(groups.shape, np.uint8)
        for midpoint in _MIDPOINTS:
            codes += magnitudes > midpoint
        codes |= ((groups < 0) & (codes > 0)).view(np.uint8) << 3
        codes = codes.reshape(-1, width)
        np.bitwise_or(codes[:, 0::2], codes[:, 1::2] << 4, out=weight[start:stop])
        undecided[start:stop] = doubtful.any(axis=-1)
    return weight.view("<u4"), scales, np.flatnonzero(undecided)


def _power_scales(largest: Array, ideal: Array) -> tuple[Array, Array, Array]:
    """(E8M0 bytes, divisors, doubtful) by a group's largest magnitude and ideal scale."""
    tiny = (largest < TINY) | (ideal == 0)
    fraction, exponent = np.frexp(np.where(tiny, np.float32(1), ideal))
    ceiling = exponent - (fraction == 0.5)
    # MLX takes the ceiling of a rounded logarithm: just above a power of two it may round down.
    doubtful = (fraction > 0.5) & (fraction < 0.5 + 1e-4) | ~(largest < 2.0**100)
    ceiling = np.where(doubtful, 0, ceiling)
    divisors = np.where(tiny, np.float32(np.inf), np.ldexp(np.float32(1), ceiling))
    return (ceiling + 127).astype(np.uint8), divisors, doubtful


def _e4m3_scales(largest: Array, ideal: Array) -> tuple[Array, Array, Array]:
    """(E4M3 bytes, divisors, doubtful) by a group's largest magnitude and ideal scale."""
    doubtful = ~(largest < 2.0**20)
    # Beyond the largest E4M3 value, 448, the scale saturates.
    scale = np.minimum(np.where(doubtful, 0, ideal), 448)
    _, exponent = np.frexp(scale)
    step = np.ldexp(np.float32(1), np.maximum(exponent - 1, -6) - 3)
    rounded = (np.rint(scale / step) * step).astype(np.float32)
    # Rounded to four significant bits, the float32 pattern holds the E4M3 one: its exponent,
    # re-biased from 127 to 7, and the top three fraction bits.  Subnormals count steps of 2^-9.
    normal = (rounded.view(np.uint32) >> 20).astype(np.int32) - ((127 - 7) << 3)
    codes = np.where(rounded < 2.0**-6, rounded * 2.0**9, normal).astype(np.uint8)
    return codes, np.where(codes == 0, np.float32(np.inf), rounded), doubtful
