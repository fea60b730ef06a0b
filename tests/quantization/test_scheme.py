"""Formats: allowed values, defaults, sizes."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import pytest

from torch2mlx.dtypes import DTYPES, dtype_from_mx
from torch2mlx.errors import OptionError
from torch2mlx.quantization.scheme import MODES, Scheme

DTYPE_NAMES = ["BF16", "F16", "F32"]


@pytest.mark.parametrize("mode", MODES)
def test_allowed_values_are_those_of_mx_quantize(mode: str) -> None:
    weight = mx.zeros((2, 768))
    for bits in range(2, 10):
        for group in (8, 16, 32, 64, 128, 256):
            try:
                mx.eval(mx.quantize(weight, group, bits, mode, stream=mx.cpu))
                accepted = True
            except ValueError:
                accepted = False
            allowed = bits in MODES[mode].bits and group in MODES[mode].group_sizes
            assert accepted == allowed, (mode, bits, group)


@pytest.mark.parametrize("mode", MODES)
def test_defaults_are_those_of_mlx(mode: str) -> None:
    scheme = Scheme.resolve(None, None, mode)
    weight = mx.random.normal((4, 512))
    default = mx.quantize(weight, mode=mode, stream=mx.cpu)
    explicit = mx.quantize(weight, **scheme.to_config(), stream=mx.cpu)
    assert all(mx.array_equal(a, b) for a, b in zip(default, explicit, strict=True))
    assert list(scheme.to_config()) == ["group_size", "bits", "mode"]


@pytest.mark.parametrize("dtype_name", DTYPE_NAMES)
@pytest.mark.parametrize("mode", MODES)
def test_layout_and_bits_per_weight_are_what_mlx_makes(mode: str, dtype_name: str) -> None:
    dtype = DTYPES[dtype_name]
    for bits in MODES[mode].bits:
        for group in MODES[mode].group_sizes:
            scheme = Scheme(bits, group, mode)
            weight = mx.zeros((3, 2, 768)).astype(getattr(mx, dtype.mx_name or ""))
            parts = mx.quantize(weight, group, bits, mode, stream=mx.cpu)
            found = [(dtype_from_mx(part.dtype), part.shape) for part in parts]
            assert list(scheme.layout(weight.shape, dtype).values()) == found
            stored = 8 * sum(part.nbytes for part in parts) / weight.size
            assert scheme.bits_per_weight(dtype) == stored


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Scheme(7, 64), "bits must be 2, 3, 4, 5, 6 or 8, not 7"),
        (lambda: Scheme(4, 48), "group size must be 32, 64 or 128, not 48"),
        (lambda: Scheme(4, 64, "mxfp4"), "'mxfp4': group size must be 32, not 64"),
        (lambda: Scheme.resolve(4, None, "mxfp8"), "'mxfp8': bits must be 8, not 4"),
        (lambda: Scheme.resolve(None, None, "gptq"), "affine, mxfp4, nvfp4 or mxfp8, not 'gptq'"),
        (lambda: Scheme.resolve(0, None, "affine"), "not 0"),
    ],
)
def test_wrong_values_are_refused_with_the_right_ones(
    make: Callable[[], Scheme], words: str
) -> None:
    with pytest.raises(OptionError) as caught:
        make()
    assert words in str(caught.value)


def test_divides() -> None:
    scheme = Scheme(4, 64)
    shapes = [(8, 128), (2, 8, 64), (8, 96), (64,), (0, 64)]
    assert [scheme.divides(shape) for shape in shapes] == [True, True, False, False, False]
