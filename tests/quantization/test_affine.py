"""Bytes against mx.quantize for values of every kind."""

from __future__ import annotations

from itertools import product
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from torch2mlx.dtypes import DTYPES, DType, from_mx, to_mx
from torch2mlx.quantization.affine import quantize_affine
from torch2mlx.quantization.scheme import MODES

Array = np.ndarray[Any, Any]

FORM = MODES["affine"]
FORMATS = list(product(FORM.bits, FORM.group_sizes))
FLOATS = [DTYPES["BF16"], DTYPES["F16"], DTYPES["F32"]]
WIDTH = 256


def bits_of(values: Array, dtype: DType) -> Array:
    """Bit view of float32 values, rounded to a dtype."""
    if dtype.name == "BF16":
        with mx.stream(mx.cpu):
            return np.array(mx.array(values.astype(np.float32)).astype(mx.bfloat16).view(mx.uint16))
    with np.errstate(over="ignore"):
        return values.astype(dtype.numpy)


def reference(rows: Array, dtype: DType, bits: int, group_size: int) -> list[Array]:
    parts = mx.quantize(to_mx(rows, dtype), group_size=group_size, bits=bits, stream=mx.cpu)
    return [from_mx(part) for part in parts]


def check(rows: Array, dtype: DType, bits: int, group_size: int) -> None:
    found = quantize_affine(rows, dtype, bits, group_size)
    assert found is not None
    for part, want in zip(found, reference(rows, dtype, bits, group_size), strict=True):
        assert (part.dtype, part.shape) == (want.dtype, want.shape)
        np.testing.assert_array_equal(
            part.view(f"u{part.itemsize}"), want.view(f"u{part.itemsize}")
        )


def plain(rng: np.random.Generator) -> Array:
    return rng.standard_normal((300, WIDTH)) * 0.02


def magnitudes(rng: np.random.Generator) -> Array:
    """Every row of its own size, subnormal in F16 to near its largest value."""
    return rng.standard_normal((400, WIDTH)) * np.exp2(rng.integers(-26, 13, (400, 1)))


def mixed_magnitudes(rng: np.random.Generator) -> Array:
    return rng.standard_normal((300, WIDTH)) * np.exp2(rng.integers(-20, 10, (300, WIDTH)))


def one_sided(rng: np.random.Generator) -> Array:
    values = np.abs(rng.standard_normal((300, WIDTH))) + rng.integers(0, 3, (300, 1))
    return values * rng.choice([-1, 1], (300, 1))


def constant(rng: np.random.Generator) -> Array:
    sizes = rng.standard_normal((200, 1)) * np.exp2(rng.integers(-40, 12, (200, 1)))
    return np.broadcast_to(sizes, (200, WIDTH))


def two_values(rng: np.random.Generator) -> Array:
    """Extremes of equal magnitude and ties of every kind, zeros of both signs."""
    choices = np.array([-0.0, 0.0, -1.0, 1.0, 0.5, -0.5, 2.0**-20, -3.0])
    pairs = rng.choice(choices, (400, 2))
    return np.take_along_axis(pairs, rng.integers(0, 2, (400, WIDTH)), axis=1)


def steps(rng: np.random.Generator) -> Array:
    """Multiples of one step, so that quotients fall on integers and halves."""
    return rng.integers(-40, 41, (300, WIDTH)) * 0.125 + rng.integers(-2, 3, (300, 1))


def sparse(rng: np.random.Generator) -> Array:
    return np.where(rng.random((300, WIDTH)) < 0.01, rng.standard_normal((300, WIDTH)), -0.0)


def tiny(rng: np.random.Generator) -> Array:
    """Around the smallest step, 1e-7, and where bfloat16 and float32 are subnormal."""
    exponents = rng.choice([-22, -23, -24, -25, -120, -127, -132, -140, -149], (300, 1))
    return rng.standard_normal((300, WIDTH)) * np.exp2(exponents.astype(np.float64))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    "kind",
    [
        plain,
        magnitudes,
        mixed_magnitudes,
        one_sided,
        constant,
        two_values,
        steps,
        sparse,
        tiny,
    ],
)
def test_bytes_equal_mx_quantize(kind: Any, dtype: DType) -> None:
    rows = bits_of(kind(np.random.default_rng(0)), dtype)
    for bits, group_size in FORMATS:
        check(rows, dtype, bits, group_size)


@pytest.mark.parametrize("dtype", [DTYPES["BF16"], DTYPES["F16"]], ids=str)
def test_every_finite_16_bit_value(dtype: DType) -> None:
    codes = np.arange(1 << 16, dtype=np.uint16)
    largest = 0x7C00 if dtype.name == "F16" else 0x7E00  # a range of two BF16 maxima overflows
    codes = codes[codes & 0x7FFF < largest]
    rng = np.random.default_rng(1)
    for order in (codes, rng.permutation(codes), np.sort(codes.view(np.int16))):
        rows = order.view(dtype.numpy)[: len(codes) // 512 * 512].reshape(-1, 512)
        for bits, group_size in ((2, 32), (4, 64), (8, 128)):
            check(rows, dtype, bits, group_size)


def test_random_float32_bit_patterns() -> None:
    patterns = np.random.default_rng(2).integers(0, 1 << 32, 1 << 15, dtype=np.uint32)
    patterns[patterns >> 23 & 255 > 250] &= 0x807FFFFF
    rows = patterns.view(np.float32).reshape(-1, 128)
    for bits, group_size in FORMATS:
        check(rows, DTYPES["F32"], bits, group_size)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_left_to_mlx(value: float, dtype: DType) -> None:
    values = np.random.default_rng(3).standard_normal((5, 128))
    values[3, 77] = value
    rows = bits_of(values, dtype)
    assert quantize_affine(rows, dtype, 4, 64) is None
    assert quantize_affine(rows[:3], dtype, 4, 64) is not None


@pytest.mark.parametrize("values", [[3e38] * 32, [3e38, -3e38] * 16], ids=["step", "range"])
def test_groups_that_leave_float32_are_left_to_mlx(values: list[float]) -> None:
    assert quantize_affine(np.float32([values]), DTYPES["F32"], 4, 32) is None


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_more_rows_than_a_block_stacked_and_strided(dtype: DType) -> None:
    values = np.random.default_rng(4).standard_normal((3, 101, 1280))
    rows = bits_of(values, dtype)
    check(rows, dtype, 4, 64)
    check(rows[:, ::3], dtype, 3, 32)
    check(rows[1:2, 40:41], dtype, 5, 128)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_unaligned_rows(dtype: DType) -> None:
    rows = bits_of(np.random.default_rng(5).standard_normal((7, 256)), dtype)
    unaligned = np.frombuffer(b"\0" + rows.tobytes(), dtype.numpy, rows.size, offset=1)
    for found, want in zip(
        quantize_affine(unaligned.reshape(rows.shape), dtype, 6, 64) or (),
        reference(rows, dtype, 6, 64),
        strict=True,
    ):
        assert found.tobytes() == want.tobytes()


def test_input_is_left_alone() -> None:
    rows = np.random.default_rng(6).standard_normal((4, 64)).astype(np.float32)
    before = rows.copy()
    quantize_affine(rows, DTYPES["F32"], 2, 64)
    np.testing.assert_array_equal(rows, before)
