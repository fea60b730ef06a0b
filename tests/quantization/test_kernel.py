"""Bytes against mx.quantize, values against mx.dequantize, for every format."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest

from torch2mlx.dtypes import DTYPES, DType, from_mx
from torch2mlx.errors import OptionError
from torch2mlx.quantization.kernel import dequantize_rows, quantize_rows
from torch2mlx.quantization.scheme import MODES, Scheme

SCHEMES = [
    Scheme(bits, group, mode)
    for mode, form in MODES.items()
    for bits in form.bits
    for group in form.group_sizes
]
FLOATS = [DTYPES["BF16"], DTYPES["F16"], DTYPES["F32"]]


def sample(dtype: DType, shape: tuple[int, ...] = (11, 384)) -> mx.array:
    """Values of many magnitudes, with the rows that trip quantizers: all zero, constant,
    positive only, one outlier, nearly subnormal."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal(shape) * np.exp2(rng.integers(-6, 6, (*shape[:-1], 1)))
    values[..., 0, :] = 0.0
    values[..., 1, :] = 0.375
    values[..., 2, :] = np.abs(values[..., 2, :])
    values[..., 3, 5] = 300.0
    values[..., 4, :] *= 1e-6
    with mx.stream(mx.cpu):
        return mx.array(values.astype(np.float32)).astype(getattr(mx, dtype.mx_name or ""))


def reference(weight: mx.array, scheme: Scheme) -> list[mx.array]:
    return list(
        mx.quantize(
            weight,
            group_size=scheme.group_size,
            bits=scheme.bits,
            mode=scheme.mode,
            stream=mx.cpu,
        )
    )


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_bytes_equal_mx_quantize_whole_in_blocks_and_stacked(scheme: Scheme, dtype: DType) -> None:
    weight = sample(dtype, (2, 11, 384))
    expected = [from_mx(part) for part in reference(weight, scheme)]
    bits = from_mx(weight)
    stacked = quantize_rows(bits, dtype, scheme)
    rows = bits.reshape(-1, 384)
    blocks = [quantize_rows(rows[i : i + 5], dtype, scheme) for i in range(0, len(rows), 5)]
    layout = scheme.layout(weight.shape, dtype)
    assert list(stacked) == list(layout)
    for suffix, want in zip(layout, expected, strict=True):
        assert (want.dtype, want.shape) == (layout[suffix][0].numpy, layout[suffix][1])
        assert stacked[suffix].tobytes() == want.tobytes()
        assert stacked[suffix].shape == want.shape
        assert b"".join(block[suffix].tobytes() for block in blocks) == want.tobytes()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_values_equal_mx_dequantize_in_float32(scheme: Scheme, dtype: DType) -> None:
    parts = reference(sample(dtype, (2, 11, 384)), scheme)
    wide = [part.astype(mx.float32) for part in parts[1:]] if scheme.affine else parts[1:]
    expected = mx.dequantize(
        parts[0],
        *wide,
        group_size=scheme.group_size,
        bits=scheme.bits,
        mode=scheme.mode,
        dtype=mx.float32,
        stream=mx.cpu,
    )
    names = ("weight", "scales", "biases")
    found = dequantize_rows(dict(zip(names, map(from_mx, parts), strict=False)), dtype, scheme)
    assert found.dtype == np.float32
    if scheme.affine and dtype.name == "F32":
        # MLX may fuse the multiply-add; float32 products are the only inexact ones.
        ulp = np.abs(found).max() * np.finfo(np.float32).eps
        np.testing.assert_allclose(found, np.array(expected), rtol=0, atol=ulp)
    else:
        np.testing.assert_array_equal(found, np.array(expected))


@pytest.mark.parametrize("mode", [mode for mode, form in MODES.items() if not form.affine])
def test_every_code_and_scale_byte_decodes_as_in_mlx(mode: str) -> None:
    scheme = Scheme.resolve(None, None, mode)
    codes = np.arange(256, dtype=np.uint8)
    words = np.tile(codes, (256, 1)).view("<u4")
    scales = np.repeat(codes[:, None], 256 * 8 // scheme.bits // scheme.group_size, axis=1)
    found = dequantize_rows({"weight": words, "scales": scales}, DTYPES["F32"], scheme)
    expected = mx.dequantize(
        mx.array(words),
        mx.array(scales),
        group_size=scheme.group_size,
        bits=scheme.bits,
        mode=mode,
        dtype=mx.float32,
        stream=mx.cpu,
    )
    np.testing.assert_array_equal(found, np.array(expected))


def test_round_trip_error_is_within_a_step() -> None:
    scheme = Scheme(8, 32)
    rows = np.random.default_rng(1).standard_normal((16, 256)).astype(np.float32)
    parts = quantize_rows(rows, DTYPES["F32"], scheme)
    error = np.abs(dequantize_rows(parts, DTYPES["F32"], scheme) - rows)
    step = np.abs(parts["scales"]).repeat(scheme.group_size, axis=-1)
    # MLX moves the scale so that zero is representable; the far end of the range pays for it.
    assert (error <= step).all()
    assert (error / step).max() > 0.45


@pytest.mark.parametrize("dtype", [DTYPES["BF16"], DTYPES["F32"]], ids=str)
@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8"])
@pytest.mark.parametrize("tiny", [1e-36, 1e-38, 1e-39, 1e-40])
def test_nearly_subnormal_groups_stay_tiny(mode: str, dtype: DType, tiny: float) -> None:
    scheme = Scheme.resolve(None, None, mode)
    rows = np.ones((3, 128), np.float32)
    rows[1, 32:64] = tiny
    with mx.stream(mx.cpu):
        bits = from_mx(mx.array(rows).astype(getattr(mx, dtype.mx_name or "")))
    values = dequantize_rows(quantize_rows(bits, dtype, scheme), dtype, scheme)
    assert np.abs(values[1, 32:64]).max() <= 2 * tiny
    rows[1, 32:64] = 0
    np.testing.assert_array_equal(np.where(rows == 0, 0, values), rows)


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [((4, 48), "F32", "(4, 48)"), ((64,), "F32", "(64,)"), ((4, 64), "I32", "I32 weight")],
)
def test_what_cannot_be_quantized_is_refused(
    shape: tuple[int, ...], dtype: str, words: str
) -> None:
    with pytest.raises(OptionError) as caught:
        quantize_rows(np.zeros(shape, DTYPES[dtype].numpy), DTYPES[dtype], Scheme(4, 64))
    assert words in str(caught.value)


@pytest.mark.parametrize("scheme", [Scheme(4, 64), Scheme(4, 16, "nvfp4")], ids=str)
def test_threads_with_streams_of_their_own_give_the_same_bytes(scheme: Scheme) -> None:
    dtype = DTYPES["BF16"]
    rows = from_mx(sample(dtype, (64, 1024)))
    whole = quantize_rows(rows, dtype, scheme)

    def work(start: int) -> dict[str, np.ndarray]:
        stream = mx.new_stream(mx.cpu)
        return quantize_rows(rows[start : start + 8], dtype, scheme, stream)

    with ThreadPoolExecutor(4) as pool:
        blocks = list(pool.map(work, range(0, 64, 8)))
    for suffix, bits in whole.items():
        assert b"".join(block[suffix].tobytes() for block in blocks) == bits.tobytes()
