"""Spectra over time: what `mx.fft` lacks."""

from __future__ import annotations

import math

import mlx.core as mx

__all__ = ["cosine_window", "inverse_stft"]


def cosine_window(length: int, periodic: bool, terms: tuple[float, ...]) -> mx.array:
    """Sum over k of (-1)^k · terms[k] · cos(2πkt): Hann (½, ½), Hamming, Blackman."""
    if length == 1:
        return mx.ones((1,))
    angle = mx.arange(length) * (2 * math.pi / (length if periodic else length - 1))
    window = mx.full((length,), terms[0])
    for k, term in enumerate(terms[1:], start=1):
        window = window + (-1) ** k * term * mx.cos(k * angle)
    return window


def overlap_add(frames: mx.array, hop: int) -> mx.array:
    """(..., T, n) frames that begin every `hop` samples, summed into (..., n + hop (T - 1))."""
    count, length = frames.shape[-2:]
    places = mx.arange(count)[:, None] * hop + mx.arange(length)
    empty = mx.zeros((*frames.shape[:-2], length + hop * (count - 1)), frames.dtype)
    return empty.at[..., places].add(frames)


def inverse_stft(
    spectrum: mx.array,
    n_fft: int,
    hop_length: int,
    window: mx.array,
    center: bool = True,
    norm: str = "backward",
    onesided: bool = True,
    length: int | None = None,
) -> mx.array:
    """The signal (..., samples) of a short-time Fourier transform (..., frequencies, frames).

    Frames are weighted by the window again and divided by the sum of its squares (Griffin and
    Lim, 1984).  The window is centred in a frame; `length` cuts or pads the result.
    """
    spectrum = mx.swapaxes(spectrum, -1, -2)
    before = (n_fft - window.shape[0]) // 2
    window = mx.pad(window, (before, n_fft - window.shape[0] - before))
    half = spectrum if onesided else spectrum[..., : n_fft // 2 + 1]
    frames = mx.fft.irfft(half, n_fft, norm=norm) * window
    signal = overlap_add(frames, hop_length)
    weight = overlap_add(mx.broadcast_to(window * window, frames.shape[-2:]), hop_length)
    start = n_fft // 2 if center else 0
    stop = signal.shape[-1]
    if length is not None:
        stop = start + length
    elif center:
        stop = stop - n_fft // 2
    signal = signal[..., start:stop] / weight[start:stop]
    missing = stop - start - signal.shape[-1]
    return mx.pad(signal, [(0, 0)] * (signal.ndim - 1) + [(0, missing)]) if missing > 0 else signal
