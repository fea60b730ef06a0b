"""Round-to-nearest quantization of rows, and the way back.

`quantize_rows` gives the bytes of `mx.quantize` on the CPU; mode "affine" and the 4-bit
floating-point modes get them in numpy, at a fraction of MLX's time.  Groups never cross a row,
so rows may come in blocks of any height and give the bytes of the whole tensor.
`dequantize_rows` is written independently of MLX, from the formats' definitions, so that each
can be checked by the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from torch2mlx.dtypes import DType, from_mx, to_mx
from torch2mlx.quantization.affine import quantize_affine
from torch2mlx.quantization.floats import as_float32, e8m0_values, small_float_values
from torch2mlx.quantization.fp4 import TINY, quantize_fp4
from torch2mlx.quantization.scheme import Scheme

if TYPE_CHECKING:
    import mlx.core as mx

__all__ = ["dequantize_rows", "pack_codes", "quantize_rows", "unpack_codes"]

Array = np.ndarray[Any, Any]

# The exponent of an mxfp8 scale below 2^-127 wraps around to the top of its byte, so a group of
# nearly subnormal values (an untrained embedding row, say) would come back as 1e38 or Inf.
_SUSPECT_SCALE = 200  # scale bytes above mean 2^73 or more: a huge weight, or a wrapped exponent


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

    scheme.require(rows.shape, dtype)

    def by_mlx(rows: Array) -> dict[str, Array]:
        parts = mx.quantize(
            to_mx(rows, dtype),
            group_size=scheme.group_size,
            bits=scheme.bits,
            mode=scheme.mode,
            # Always the CPU: the result must not depend on the machine that converts.
            stream=mx.cpu if stream is None else stream,
        )
        mx.eval(parts)
        return dict(zip(layout, map(from_mx, parts), strict=True))

    layout = scheme.layout(rows.shape, dtype)
    if scheme.affine:
        affine = quantize_affine(rows, dtype, scheme.bits, scheme.group_size)
        return by_mlx(rows) if affine is None else dict(zip(layout, affine, strict=True))
    if scheme.mode in ("mxfp4", "nvfp4"):
        flat = rows.reshape(-1, rows.shape[-1])
        weight, scales, undecided = quantize_fp4(flat, dtype, scheme)
        if undecided.size:
            parts = by_mlx(_flush_tiny_groups(flat[undecided], dtype, scheme.group_size))
            weight[undecided], scales[undecided] = parts["weight"], parts["scales"]
        found = {"weight": weight, "scales": scales}
        return {suffix: found[suffix].reshape(shape) for suffix, (_, shape) in layout.items()}
    parts = by_mlx(rows)
    if scheme.mode == "mxfp8" and parts["scales"].max() > _SUSPECT_SCALE:
        return by_mlx(_flush_tiny_groups(rows, dtype, scheme.group_size))
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
        values *= as_float32(parts["scales"], dtype)[..., None]
        values += as_float32(parts["biases"], dtype)[..., None]
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
    mask = 2**bits - 1
    if 8 % bits == 0:
        codes = np.empty((*octets.shape, 8 // bits), np.uint8)
        for i in range(8 // bits):
            np.bitwise_and(octets >> (i * bits), mask, out=codes[..., i])
    else:
        # Eight codes fill `bits` bytes, so they fit one 64-bit word.
        wide = np.zeros((octets.size // bits, 8), np.uint8)
        wide[:, :bits] = octets.reshape(-1, bits)
        lanes = wide.view("<u8")[:, 0]
        codes = np.empty((len(lanes), 8), np.uint8)
        for i in range(8):
            codes[:, i] = (lanes >> np.uint64(i * bits)) & np.uint64(mask)
    return codes.reshape(*words.shape[:-1], -1)


def pack_codes(codes: Array, bits: int) -> Array:
    """The inverse of `unpack_codes`: words `[..., n * bits / 32]` of uint8 codes `[..., n]`."""
    single = (codes[..., None] >> np.arange(bits, dtype=np.uint8)) & 1
    octets = np.packbits(single.reshape(*codes.shape[:-1], -1), axis=-1, bitorder="little")
    return octets.view("<u4")


def _flush_tiny_groups(rows: Array, dtype: DType, group_size: int) -> Array:
    """The rows with each group of magnitudes below `TINY` replaced by zeros."""
    grouped = rows.reshape(*rows.shape[:-1], -1, group_size)
    largest = np.abs(as_float32(grouped, dtype)).max(axis=-1, keepdims=True)
    flushed: Array = np.where(largest < TINY, np.zeros_like(grouped), grouped)
    return flushed.reshape(rows.shape)


@cache
def _tables(mode: str) -> tuple[Array, Array]:
    """Values of each element code and of each scale byte of a floating-point mode."""
    elements = small_float_values(3, 8) if mode == "mxfp8" else small_float_values(1, 4)
    return elements, small_float_values(3, 8) if mode == "nvfp4" else e8m0_values()
