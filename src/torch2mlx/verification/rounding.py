"""How far a quantized value may lie from the weight that it was rounded from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from torch2mlx.dtypes import DTYPES, DType
from torch2mlx.quantization.kernel import unpack_codes
from torch2mlx.quantization.scheme import Scheme
from torch2mlx.verification.reference import to_torch

__all__ = ["rounding_bounds"]

Array = np.ndarray[Any, Any]

# Relative error of rounding to nearest, and half the spacing of subnormal numbers.
_ROUNDOFF = {"BF16": 2.0**-8, "F16": 2.0**-11, "F32": 2.0**-24}
_SUBNORMAL = {"BF16": 0.0, "F16": 2.0**-25, "F32": 0.0}
_SCALE_TYPE = {"mxfp4": DTYPES["F8_E8M0"], "mxfp8": DTYPES["F8_E8M0"], "nvfp4": DTYPES["F8_E4M3"]}
_SLACK = 1 + 1e-5  # for the float32 arithmetic of the quantizer and of this check

# An E4M3 scale below 2^-6 is a multiple of 2^-9: up to 2^-10 too small, which the largest
# element code, 6, multiplies.
_NVFP4_FLOOR = np.float32(6 * 2.0**-10 * _SLACK)


def rounding_bounds(parts: Mapping[str, Array], dtype: DType, scheme: Scheme) -> Array:
    """Largest |value - weight| of each element that rounding to nearest can give.

    Affine: the grid of a group runs from its extreme of larger magnitude, which is exact, in
    2^bits - 1 steps toward the other one.  Inside of it the error is half a step.  The step is
    stretched or shrunk until zero is on the grid; shrunk, the grid ends up to one step short of
    the other extreme, so the last code may be a full step off.  The scale is rounded to the
    weight's dtype, which moves code q by q roundoffs of a step.

    Floating-point modes: half the spacing of the element type around the value, in units of the
    group's scale.  The scale is (largest magnitude) / (largest code) rounded to E8M0 (by up to a
    factor √2) or E4M3, so weights above the largest code are cut to it.

    Args:
        parts: the written tensors, as for `torch2mlx.quantization.kernel.dequantize_rows`.
        dtype: of affine scales and biases.
        scheme: the format of the rows.

    Returns:
        float32 `[..., n, in]`.
    """
    codes = unpack_codes(parts["weight"], scheme.bits)
    steps = np.abs(_numbers(parts["scales"], dtype if scheme.affine else _SCALE_TYPE[scheme.mode]))
    bounds: Array = _units(scheme, dtype.name)[codes].reshape(*steps.shape, scheme.group_size)
    bounds *= steps[..., None]
    if scheme.affine:
        rest = np.abs(_numbers(parts["biases"], dtype)) * np.float32(_SLACK - 1)
        rest += np.float32(_SUBNORMAL[dtype.name] * 2**scheme.bits)
        bounds += rest[..., None]
    elif scheme.mode == "nvfp4":
        top = (codes & 7 == 7).reshape(bounds.shape) | (steps == 0)[..., None]
        np.maximum(bounds, _NVFP4_FLOOR, out=bounds, where=top)
    return bounds.reshape(codes.shape)


def _numbers(bits: Array, dtype: DType) -> Array:
    numbers: Array = to_torch(bits, dtype).float().numpy()
    return numbers


@cache
def _units(scheme: Scheme, dtype: str) -> Array:
    """The bound for each code in units of its group's scale."""
    codes = np.arange(2**scheme.bits)
    if scheme.affine:
        units = 0.5 + codes * _ROUNDOFF[dtype]
        units[-1] += 0.5
    elif scheme.bits == 4:
        magnitude = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])[codes & 7]
        units = np.select([magnitude < 2, magnitude < 4], [0.25, 0.5], 1.0)
        units[magnitude == 6] = 1.0 if scheme.mode == "nvfp4" else 6 * 2**0.5 - 6
    else:
        magnitude = np.abs(_numbers(codes.astype(np.uint8), DTYPES["F8_E4M3"]))
        units = np.maximum(magnitude * 2.0**-4, 2.0**-10)
        units[magnitude == 448] = 448 * 2**0.5 - 448
    return (units * _SLACK).astype(np.float32)
