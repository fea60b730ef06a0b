"""Round-to-nearest quantization of rows, and the way back.

`quantize_rows` is `mx.quantize` on the CPU: groups never cross a row, so rows may come in
blocks of any height and give the bytes of the whole tensor.  `dequantize_rows` is written
independently of MLX, from the formats' definitions, so that each can be checked by the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from torch2mlx.dtypes import DType, from_mx, to_mx
from torch2mlx.quantization.scheme import Scheme

if TYPE_CHECKING:
    import mlx.core as mx

__all__ = ["dequantize_rows", "quantize_rows"]

Array = np.ndarray[Any, Any]

_E8M0_SUSPECT = 200
"""Scale bytes above this mean 2^73 or more: a huge weight, or an exponent that wrapped."""


def quantize_rows(
    rows: Array,
    dtype: DType,
    scheme: Scheme,
    stream: mx.Stream | None = None,
) -> dict[str, Array]:
    """Quantize rows of a weight by rounding to nearest, byte for byte as `mx.quantize` does.

    Args:
        rows: bit view `[..., n, in]` of BF16, F16 or F32 values.
        dtype: what the bits mean.
        scheme: target format.
        stream: a CPU stream of the calling thread; default: MLX's own CPU stream.

    Returns:
        Bit views by suffix, shaped as `scheme.layout(rows.shape, dtype)` says.  They are
        those of `mx.quantize`, except for mxfp4 and mxfp8 groups whose values are all below
        2^-100, which that turns into huge ones and which are zeros here.

    Raises:
        OptionError: the rows are no whole groups, or the dtype cannot be quantized.
    """
    import mlx.core as mx

    def quantize(bits: Array) -> dict[str, Array]:
        parts = mx.quantize(
            to_mx(bits, dtype),
            group_size=scheme.group_size,
            bits=scheme.bits,
            mode=scheme.mode,
            # Always the CPU: the result must not depend on the machine that converts.
            stream=mx.cpu if stream is None else stream,
        )
        mx.eval(parts)
        return dict(zip(scheme.layout(bits.shape, dtype), map(from_mx, parts), strict=True))

    scheme.require(rows.shape, dtype)
    parts = quantize(rows)
    if scheme.mode in ("mxfp4", "mxfp8") and parts["scales"].max() > _E8M0_SUSPECT:
        # The exponent of a scale below 2^-127 wraps around to the top of its byte, so a group of
        # nearly subnormal values (an untrained embedding row, say) would come back as 1e38 or
        # Inf.  Such a group is zero for every purpose, and is stored so.
        return quantize(_flush_tiny_groups(rows, dtype, scheme.group_size))
    return parts


def dequantize_rows(parts: Mapping[str, Array], dtype: DType, scheme: Scheme) -> Array:
    """The float32 values of quantized rows, computed without MLX.

    Args:
        parts: bit views as `quantize_rows` returns them: "weight" `[..., n, in * bits / 32]`,
            "scales" and (mode "affine") "biases" `[..., n, in / group_size]`.
        dtype: dtype of affine scales and biases (the other modes ignore it).
        scheme: the format of the rows.

    Returns:
        float32 `[..., n, in]`.  Mode "affine" computes `scale * q + bias` in float32, the
        product rounded before the sum; with BF16 and F16 scales the product is exact, so a
        fused multiply-add gives the same values.
    """
    codes = unpack_codes(parts["weight"], scheme.bits)
    grouped = codes.reshape(*parts["scales"].shape, scheme.group_size)
    if scheme.affine:
        values = grouped.astype(np.float32)
        values *= _as_float32(parts["scales"], dtype)[..., None]
        values += _as_float32(parts["biases"], dtype)[..., None]
    else:
        elements, scales = _tables(scheme.mode)
        values = elements[grouped]
        # A scale byte near the top stands for an overflow or Inf, and comes out as one.
        with np.errstate(over="ignore", invalid="ignore"):
            values *= scales[parts["scales"]][..., None]
    return values.reshape(codes.shape)


def unpack_codes(words: Array, bits: int) -> Array:
    """The codes of packed 32-bit words, lowest bits first: uint8 `[..., words * 32 / bits]`."""
    octets: Array = np.ascontiguousarray(words, dtype="<u4").view(np.uint8)
    if bits == 8:
        return octets
    # Eight codes fill `bits` bytes whatever the width, so they fit one 64-bit word.
    octets = octets.reshape(*octets.shape[:-1], -1, bits)
    wide = np.zeros((*octets.shape[:-1], 8), np.uint8)
    wide[..., :bits] = octets
    lanes = wide.view("<u8") >> (np.arange(8, dtype=np.uint64) * np.uint64(bits))
    codes: Array = (lanes & np.uint64(2**bits - 1)).astype(np.uint8)
    return codes.reshape(*words.shape[:-1], -1)


def _flush_tiny_groups(rows: Array, dtype: DType, group_size: int) -> Array:
    """The rows with each group of magnitudes below 2^-100 replaced by zeros."""
    grouped = rows.reshape(*rows.shape[:-1], -1, group_size)
    largest = np.abs(_as_float32(grouped, dtype)).max(axis=-1, keepdims=True)
    flushed: Array = np.where(largest < 2.0**-100, np.zeros_like(grouped), grouped)
    return flushed.reshape(rows.shape)


def _as_float32(bits: Array, dtype: DType) -> Array:
    if dtype.name == "BF16":
        return (bits.astype("<u4") << 16).view("<f4")
    return bits.astype(np.float32)


@cache
def _tables(mode: str) -> tuple[Array, Array]:
    """Values of each element code and of each scale byte of a floating-point mode."""
    elements = _small_float(3, 8) if mode == "mxfp8" else _small_float(1, 4)
    return elements, _small_float(3, 8) if mode == "nvfp4" else _e8m0()


def _small_float(mantissa: int, bits: int) -> Array:
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


def _e8m0() -> Array:
    """Values of E8M0 scale bytes: powers of two, 2^-127 first; 255 is Inf as MLX decodes it
    (the specification has NaN there; no finite weight gets it).
    """
    words = np.arange(256, dtype=np.uint32) << 23
    words[0] = 1 << 22
    scales: Array = words.view(np.float32)
    return scales
