"""How far a quantized value may lie from the weight that it was rounded from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from torch2mlx.dtypes import DTYPES, DType, to_torch
from torch2mlx.quantization.kernel import unpack_codes
from torch2mlx.quantization.scheme import Scheme

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
    if scheme.affine:
        return _affine_bounds(parts, dtype, scheme)
    steps = _numbers(parts["scales"], _SCALE_TYPE[scheme.mode])[..., None]
    bounds = _in_steps(parts["weight"], scheme).reshape(*steps.shape[:-1], scheme.group_size)
    bounds *= steps
    if scheme.mode == "nvfp4":
        top = unpack_codes(parts["weight"], 4) & 7 == 7
        top = top.reshape(bounds.shape) | (steps == 0)
        np.maximum(bounds, top * _NVFP4_FLOOR, out=bounds)
    return bounds.reshape(*steps.shape[:-2], -1)


def _affine_bounds(parts: Mapping[str, Array], dtype: DType, scheme: Scheme) -> Array:
    codes = unpack_codes(parts["weight"], scheme.bits)
    bounds = codes.astype(np.float32)
    bounds *= np.float32(_ROUNDOFF[dtype.name])
    bounds += np.float32(0.5)
    bounds += (codes == 2**scheme.bits - 1) * np.float32(0.5)
    bounds = bounds.reshape(*parts["scales"].shape, scheme.group_size)
    bounds *= np.abs(_numbers(parts["scales"], dtype))[..., None] * np.float32(_SLACK)
    rest = np.abs(_numbers(parts["biases"], dtype)) * np.float32(_SLACK - 1)
    rest += np.float32(_SUBNORMAL[dtype.name] * 2**scheme.bits)
    bounds += rest[..., None]
    return bounds.reshape(codes.shape)


def _in_steps(words: Array, scheme: Scheme) -> Array:
    """The bound of each element in units of its group's scale, float32 `[..., n, in]`."""
    octets = np.ascontiguousarray(words).view(np.uint8)
    units = _units(scheme)
    if scheme.bits == 8:
        return units[octets]
    # Both codes of a byte are looked up at once: a complex number is two floats.
    pairs = np.stack([np.tile(units, 16), units.repeat(16)], axis=-1).view(np.complex64)[:, 0]
    bounds: Array = pairs[octets].view(np.float32)
    return bounds


def _numbers(bits: Array, dtype: DType) -> Array:
    numbers: Array = to_torch(bits, dtype).float().numpy()
    return numbers


@cache
def _units(scheme: Scheme) -> Array:
    """The bound for each code of a floating-point mode in units of its group's scale."""
    codes = np.arange(2**scheme.bits, dtype=np.uint8)
    if scheme.bits == 4:
        magnitude = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])[codes & 7]
        units = np.select([magnitude < 2, magnitude < 4], [0.25, 0.5], 1.0)
        units[magnitude == 6] = 1.0 if scheme.mode == "nvfp4" else 6 * 2**0.5 - 6
    else:
        magnitude = np.abs(_numbers(codes, DTYPES["F8_E4M3"]))
        units = np.maximum(magnitude * 2.0**-4, 2.0**-10)
        units[magnitude == 448] = 448 * 2**0.5 - 448
    return (units * _SLACK).astype(np.float32)
