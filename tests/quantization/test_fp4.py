"""Every possible largest magnitude of a group, in both 16-bit dtypes, against mx.quantize."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from torch2mlx.dtypes import DTYPES, DType, from_mx
from torch2mlx.quantization.fp4 import TINY, quantize_fp4
from torch2mlx.quantization.kernel import quantize_rows
from torch2mlx.quantization.scheme import Scheme

HALVES = [DTYPES["BF16"], DTYPES["F16"]]


def compare(weight: mx.array, dtype: DType, mode: str) -> None:
    scheme = Scheme.resolve(None, None, mode)
    expected = mx.quantize(weight, **scheme.to_config(), stream=mx.cpu)
    found = quantize_rows(from_mx(weight), dtype, scheme)
    np.testing.assert_array_equal(found["scales"], np.array(expected[1]))
    np.testing.assert_array_equal(found["weight"], np.array(expected[0]))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4"])
def test_every_half_precision_maximum(mode: str, dtype: DType) -> None:
    rng = np.random.default_rng(0)
    exponents = 0x7C00 if dtype.name == "F16" else 0x7F80
    tops = mx.array(np.arange(exponents, dtype=np.uint16)).view(getattr(mx, dtype.mx_name or ""))
    values = np.array(tops.astype(mx.float32, stream=mx.cpu))
    if mode == "mxfp4":
        # Below, MLX wraps the exponent of the scale; see test_kernel.
        values = values[(values == 0) | (values > TINY)]
    rows = rng.uniform(-1, 1, (len(values), 32)).astype(np.float32) * values[:, None]
    rows[:, ::16] = values[:, None]
    with mx.stream(mx.cpu):
        compare(mx.array(rows).astype(tops.dtype), dtype, mode)


@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4"])
def test_single_precision_ties_powers_of_two_and_their_neighbours(mode: str) -> None:
    rng = np.random.default_rng(0)
    ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6], np.float32)
    near = np.nextafter(ties, np.float32([[0.0], [9.0]]))
    row = np.concatenate([ties, -ties, near.ravel()])
    rows = row * np.exp2(np.arange(-40, 12, dtype=np.float32))[:, None]
    ulps = 6 * (1 + np.arange(-400, 400, dtype=np.float32)[:, None] * np.float32(2**-23))
    around = np.concatenate([ulps, rng.uniform(-5, 5, (800, 31)).astype(np.float32)], axis=1)
    for weight in (rows, around.astype(np.float32), around.astype(np.float32) / 128):
        compare(mx.array(weight), DTYPES["F32"], mode)


def test_only_odd_rows_are_left_to_mlx() -> None:
    rows = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    rows[3, 7], rows[5, 9], rows[6, 0] = np.nan, np.inf, 1e35
    for mode in ("mxfp4", "nvfp4"):
        scheme = Scheme.resolve(None, None, mode)
        assert quantize_fp4(rows, DTYPES["F32"], scheme)[2].tolist() == [3, 5, 6]
        compare(mx.array(rows), DTYPES["F32"], mode)


def test_tiny_groups_in_rows_left_to_mlx_are_zeros_too() -> None:
    rows = np.ones((2, 64), np.float32)
    rows[0, 0], rows[0, 32:] = 1e35, 1e-38
    found = quantize_rows(rows, DTYPES["F32"], Scheme(4, 32, "mxfp4"))
    assert not found["weight"][0, 4:].any()
