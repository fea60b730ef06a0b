from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from torch2mlx.dtypes import dtype_from_mx, from_mx
from torch2mlx.quantization.kernel import dequantize_rows
from torch2mlx.quantization.scheme import Scheme
from torch2mlx.verification.rounding import rounding_bounds

SCHEMES = [Scheme(b, g) for b in (2, 3, 4, 5, 6, 8) for g in (32, 128)]
SCHEMES += [Scheme(4, 32, "mxfp4"), Scheme(4, 16, "nvfp4"), Scheme(8, 32, "mxfp8")]


def weights(rng):
    """Groups as they occur, and as they should not: one-sided, far from zero, tiny, constant."""
    normal = rng.standard_normal((64, 256)).astype(np.float32)
    shift = rng.uniform(-4, 4, (64, 1)).astype(np.float32)
    rows = [
        normal * 0.02, normal, np.abs(normal), -np.abs(normal), normal * 0.05 + shift,
        normal**3, normal * 1e-4, normal * 3e-7, rng.uniform(-1, 1, (64, 256)),
        np.zeros((2, 256)), np.full((2, 256), -0.37), np.sign(normal),
    ]  # fmt: skip
    return np.concatenate(rows).astype(np.float32)


def quantized(weight, scheme):
    """(parts of `mx.quantize`, float32 weight, dtype)"""
    kind = {"bits": scheme.bits, "group_size": scheme.group_size, "mode": scheme.mode}
    names = ("weight", "scales", "biases")
    with mx.stream(mx.cpu):
        parts = {
            n: np.array(from_mx(p))
            for n, p in zip(names, mx.quantize(weight, **kind), strict=False)
        }
        exact = np.array(weight.astype(mx.float32))
    return parts, exact, dtype_from_mx(weight.dtype)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32], ids=str)
def test_bounds_hold_for_mx_quantize_and_are_reached(scheme, dtype):
    weight = mx.array(weights(np.random.default_rng(0))).astype(dtype)
    parts, exact, kept = quantized(weight, scheme)
    error = np.abs(dequantize_rows(parts, kept, scheme) - exact)
    bound = rounding_bounds(parts, kept, scheme)
    assert bound.shape == exact.shape
    assert (error <= bound).all()
    # Tight: usual groups come close to their bound, so one more step is well beyond it.
    assert (error[64:128] / bound[64:128]).max() > 0.85


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_neighbouring_codes_break_the_bound(scheme):
    rng = np.random.default_rng(1)
    weight = mx.array(rng.uniform(-1, 1, (8, 256)).astype(np.float32))
    parts, exact, kept = quantized(weight, scheme)
    parts["weight"] = parts["weight"] ^ np.uint32(1 << (scheme.bits - 2))
    error = np.abs(dequantize_rows(parts, kept, scheme) - exact)
    assert (error > rounding_bounds(parts, kept, scheme)).any()
