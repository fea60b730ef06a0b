"""Fourier transforms and complex numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from table import Sample, TensorMaker, Tolerance, call, case, refused

aten = torch.ops.aten
FFT = {
    "tolerance": {
        torch.float32: Tolerance(1e-4, 1e-4),
        torch.complex64: Tolerance(1e-4, 1e-4),
    },
    "reason": "a sum over the extent: the error scales with its terms, not with the result",
}
NORMS = (None, "backward", "ortho", "forward")


def spectrum(x: torch.Tensor, real: bool) -> torch.Tensor:
    return x if real else torch.complex(x, x.flip(-1) * 0.7)


def one_axis(real: bool, hermitian: bool = False) -> Any:
    def samples(t: TensorMaker) -> Iterator[Sample]:
        for norm in NORMS:
            x = spectrum(t(3, 6, 5), real)
            if hermitian:  # what a real signal gives; otherwise the result is a matter of taste
                x = torch.fft.rfft(t(3, 6, 8), dim=-1)
            yield call(x, None, -1, norm)
            if not hermitian:
                yield call(x, 8, 1, norm)
                yield call(x, 4, -2, norm)
                yield call(x, 7, 0, norm)
            else:
                yield call(x, 8, -1, norm)

    return samples


def several_axes(real: bool, hermitian: bool = False) -> Any:
    def samples(t: TensorMaker) -> Iterator[Sample]:
        for norm in NORMS:
            if hermitian:
                x = torch.fft.rfftn(t(3, 6, 8), dim=(-2, -1))
                yield call(x, None, [-2, -1], norm)
                yield call(x, [6, 8], [-2, -1], norm)
                yield call(x, [6, -1], [-2, -1], norm)
                yield call(torch.fft.rfftn(t(3, 6, 8), dim=(2, 1)), [8, -1], [2, 1], norm)
                continue
            x = spectrum(t(3, 6, 5), real)
            yield call(x, None, [0, 2], norm)
            yield call(x, [4, 7], [2, 1], norm)
            yield call(x, [-1, 7], [1, 2], norm)

    return samples


COMPLEX = (torch.complex64,)
HALVES = refused("no half types", dtypes=(torch.float16, torch.bfloat16))
for name, real, hermitian in (
    ("fft", False, False),
    ("ifft", False, False),
    ("rfft", True, False),
    ("irfft", False, True),
):
    case(
        getattr(aten, f"fft_{name}").default,
        samples=one_axis(real, hermitian),
        fails=[HALVES],
        **FFT,
    )
    for suffix in ("2", "n"):
        case(
            getattr(aten, f"fft_{name}{suffix}").default,
            samples=several_axes(real, hermitian),
            fails=[HALVES],
            **FFT,
        )
case(aten.fft_hfft.default, samples=one_axis(False, True), fails=[HALVES], **FFT)
case(aten.fft_ihfft.default, samples=one_axis(True), fails=[HALVES], **FFT)
for name in ("fft_fftfreq", "fft_rfftfreq"):
    case(getattr(aten, name).default, samples=lambda t: [call(7), call(8, 0.5)])


def decomposed(kind: str) -> Any:
    def samples(t: TensorMaker) -> Iterator[Sample]:
        for normalization in (0, 1, 2):
            for dim in ([1], [0, 2], [2]):
                if kind == "r2c":
                    yield call(t(3, 6, 5), dim, normalization, True)
                    yield call(t(3, 6, 5), dim, normalization, False)
                elif kind == "c2c":
                    yield call(spectrum(t(3, 6, 5), False), dim, normalization, True)
                    yield call(spectrum(t(3, 6, 5), False), dim, normalization, False)
                else:
                    x = torch.fft.rfftn(t(4, 6, 8), dim=dim)
                    yield call(x, dim, normalization, (4, 6, 8)[dim[-1]])

    return samples


for kind in ("r2c", "c2c", "c2r"):
    case(getattr(aten, f"_fft_{kind}").default, samples=decomposed(kind), **FFT)


def frames(t: TensorMaker) -> Iterator[Sample]:
    x, window = t(2, 40), torch.hann_window(8)
    yield call(x, 8, return_complex=True)
    yield call(x, 8, 3, 8, window, return_complex=True)
    yield call(x, 8, 3, 5, window[:5], True, True, True)
    yield call(x, 8, 3, 5, None, False, False, True)
    yield call(x[0], 8, 4, 8, window, True, return_complex=False)
    yield call(x, 7, 2, return_complex=True)


def centered(t: TensorMaker) -> Iterator[Sample]:
    for mode in ("reflect", "constant", "replicate", "circular"):
        yield call(t(2, 40), 8, 3, 6, torch.hann_window(6), True, mode, return_complex=True)
    yield call(t(2, 40), 8, 3, center=False, return_complex=True)


def inverse(t: TensorMaker) -> Iterator[Sample]:
    window = torch.hann_window(8) + 0.1
    for kwargs in (
        {"window": window},
        {"window": window, "normalized": True},
        {"window": window[:6], "win_length": 6},
        {"hop_length": 3},
        {"window": window, "onesided": False},
        {"window": window, "center": False},
    ):
        x = torch.stft(t(2, 40), 8, return_complex=True, pad_mode="constant", **kwargs)
        yield call(x, 8, **kwargs)
        yield call(x, 8, **kwargs, length=30)
        yield call(x[0], 8, **kwargs, length=38)


def has_complex_window(sample: Sample) -> bool:
    window = sample.get(4, "window")
    return window is not None and window.is_complex()


case(
    aten.stft.default,
    samples=frames,
    fails=[refused("a complex window", has_complex_window)],
    **FFT,
)
case(
    aten.stft.center,
    samples=centered,
    fails=[refused("pad_mode=circular", lambda s: s.get(6, "pad_mode") == "circular")],
    **FFT,
)
case(
    aten.istft.default,
    samples=inverse,
    fails=[refused("a complex result", lambda s: s.get(9, "return_complex", False))],
    **FFT,
)
for window in (aten.hann_window, aten.blackman_window, aten.hamming_window):
    case(window.default, samples=lambda t: [call(8), call(7, dtype=torch.float16), call(1)])
    case(window.periodic, samples=lambda t: [call(8, False), call(7, True), call(1, False)])
case(aten.hamming_window.periodic_alpha, samples=lambda t: [call(8, False, 0.6)])
case(aten.hamming_window.periodic_alpha_beta, samples=lambda t: [call(8, True, 0.6, 0.3)])
SMALL = refused("MLX has complex64 only", dtypes=(torch.float16,))
case(aten.view_as_complex.default, fails=[SMALL])
