"""Fourier transforms, their windows, and the parts of complex numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.registry import LoweringError, lowering
from torch2mlx.compiler.lowering.types import as_float, is_complex, is_floating, mx_dtype
from torch2mlx.compiler.runtime import spectra

__all__: list[str] = []

aten = torch.ops.aten

OTHER_WAY = {"backward": "forward", "forward": "backward", "ortho": "ortho"}


def _operand(b: Builder, name: str, x: Value) -> Value:
    """The operand in a type that both transform: float32 or complex64."""
    if is_floating(x.dtype) and x.dtype != mx.float32:
        raise LoweringError(f"{name}: dtype={x.dtype}; torch transforms no half types on the CPU")
    return as_float(b, x)


def _options(norm: str | None, **others: Any) -> dict[str, Any]:
    kept = {k: v for k, v in others.items() if v is not None}
    return kept if norm in (None, "backward") else {**kept, "norm": norm}


def _one_axis(name: str, function: Callable[..., Any]) -> None:
    @lowering(getattr(aten, f"fft_{name}").default)
    def lower(
        b: Builder, x: Value, n: int | None = None, dim: int = -1, norm: str | None = None
    ) -> Any:
        """fft(input, n, dim, norm)."""
        axis = None if dim in (-1, x.ndim - 1) else dim
        return b.call(function, _operand(b, name, x), **_options(norm, n=n, axis=axis))


def _extents(
    x: Value, s: Sequence[int] | None, dim: Sequence[int] | None, half: bool = False
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """(axes, sizes or None): torch's rules, where -1 keeps an extent."""
    if dim is None:
        count = x.ndim if s is None else len(s)
        dim = range(x.ndim - count, x.ndim)
    axes = tuple(d % x.ndim for d in dim)
    if len(set(axes)) != len(axes):
        raise LoweringError(f"fft: dim={list(dim)} names an axis twice")
    if s is None:
        return axes, None
    sizes = [x.shape[axis] if size == -1 else size for axis, size in zip(axes, s, strict=True)]
    if half and s[-1] == -1:
        sizes[-1] = 2 * (x.shape[axes[-1]] - 1)
    return axes, tuple(sizes)


def _several_axes(name: str, function: Callable[..., Any], two: bool) -> None:
    @lowering(getattr(aten, f"fft_{name}{2 if two else 'n'}").default)
    def lower(
        b: Builder,
        x: Value,
        s: Sequence[int] | None = None,
        dim: Sequence[int] | None = (-2, -1) if two else None,
        norm: str | None = None,
    ) -> Any:
        """fftn(input, s, dim, norm)."""
        axes, sizes = _extents(x, s, dim, half=name == "irfft")
        if not axes:
            return x
        return b.call(function, _operand(b, name, x), **_options(norm, s=sizes, axes=axes))


for _name in ("fft", "ifft", "rfft", "irfft"):
    _one_axis(_name, getattr(mx.fft, _name))
    for _two in (True, False):
        _several_axes(_name, getattr(mx.fft, f"{_name}n"), _two)


@lowering(aten.fft_hfft.default)
def lower_hfft(
    b: Builder, x: Value, n: int | None = None, dim: int = -1, norm: str | None = None
) -> Any:
    """The real transform of a Hermitian signal: irfft of the conjugate, scaled the other way."""
    x = b.call(mx.conjugate, b.cast(_operand(b, "hfft", x), mx.complex64))
    way = OTHER_WAY[norm or "backward"]
    return b.call(mx.fft.irfft, x, **_options(way, n=n, axis=dim))


@lowering(aten.fft_ihfft.default)
def lower_ihfft(
    b: Builder, x: Value, n: int | None = None, dim: int = -1, norm: str | None = None
) -> Any:
    """The inverse: the conjugate of rfft, scaled the other way."""
    way = OTHER_WAY[norm or "backward"]
    y = b.call(mx.fft.rfft, _operand(b, "ihfft", x), **_options(way, n=n, axis=dim))
    return b.call(mx.conjugate, y)


@lowering(aten.fft_fftshift.default)
def lower_fftshift(b: Builder, x: Value, dim: Sequence[int] | None = None) -> Any:
    """fftshift(input, dim)."""
    return b.call(mx.fft.fftshift, x, **_options(None, axes=dim if dim is None else tuple(dim)))


@lowering(aten.fft_ifftshift.default)
def lower_ifftshift(b: Builder, x: Value, dim: Sequence[int] | None = None) -> Any:
    """ifftshift(input, dim)."""
    return b.call(mx.fft.ifftshift, x, **_options(None, axes=dim if dim is None else tuple(dim)))


def _frequencies(function: Callable[..., Any]) -> Callable[..., Any]:
    def lower(
        b: Builder, n: int, d: float = 1.0, *, dtype: torch.dtype | None = None, **_: Any
    ) -> Any:
        """fftfreq(n, d)."""
        y = b.call(function, n, d)
        return y if dtype is None else b.cast(y, mx_dtype(dtype))

    return lower


lowering(aten.fft_fftfreq.default)(_frequencies(mx.fft.fftfreq))
lowering(aten.fft_rfftfreq.default)(_frequencies(mx.fft.rfftfreq))


# What the transforms above decompose into; normalization: 0 none, 1 by √n, 2 by n.

FORWARD = ("backward", "ortho", "forward")
INVERSE = ("forward", "ortho", "backward")


@lowering(aten._fft_r2c.default)
def lower_fft_r2c(
    b: Builder, x: Value, dim: Sequence[int], normalization: int, onesided: bool
) -> Any:
    """Real to complex; onesided halves the last of `dim`."""
    options = _options(FORWARD[normalization], axes=tuple(dim))
    return b.call(mx.fft.rfftn if onesided else mx.fft.fftn, _operand(b, "fft", x), **options)


@lowering(aten._fft_c2c.default)
def lower_fft_c2c(
    b: Builder, x: Value, dim: Sequence[int], normalization: int, forward: bool
) -> Any:
    """Complex to complex."""
    if not dim:
        return x
    if forward:
        return b.call(mx.fft.fftn, x, **_options(FORWARD[normalization], axes=tuple(dim)))
    return b.call(mx.fft.ifftn, x, **_options(INVERSE[normalization], axes=tuple(dim)))


@lowering(aten._fft_c2r.default)
def lower_fft_c2r(
    b: Builder, x: Value, dim: Sequence[int], normalization: int, last_dim_size: int
) -> Any:
    """Half of a Hermitian spectrum to real."""
    sizes = (*(x.shape[d] for d in dim[:-1]), last_dim_size)
    options = _options(INVERSE[normalization], s=sizes, axes=tuple(dim))
    return b.call(mx.fft.irfftn, x, **options)


# Over time


@lowering(aten.stft.default)
def lower_stft(
    b: Builder,
    x: Value,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Value | None = None,
    normalized: bool = False,
    onesided: bool | None = None,
    return_complex: bool | None = None,
    align_to_window: bool | None = None,
) -> Any:
    """The short-time transform (..., frequencies, frames) of a signal that is padded already."""
    return _stft(
        b, x, n_fft, hop_length, win_length, window, normalized, onesided, return_complex,
        align_to_window, center=False,
    )  # fmt: skip


@lowering(aten.stft.center)
def lower_stft_center(
    b: Builder,
    x: Value,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Value | None = None,
    center: bool = True,
    pad_mode: str = "reflect",
    normalized: bool = False,
    onesided: bool | None = None,
    return_complex: bool | None = None,
    align_to_window: bool | None = None,
) -> Any:
    """The same with frames centred at multiples of the hop."""
    modes = {"reflect": "reflect", "constant": "constant", "replicate": "edge"}
    options: dict[str, Any] = {"center": center}
    if center:
        if pad_mode not in modes:
            raise LoweringError(f"stft: pad_mode={pad_mode}")
        options["pad_mode"] = modes[pad_mode]
    return _stft(
        b, x, n_fft, hop_length, win_length, window, normalized, onesided, return_complex,
        align_to_window, **options,
    )  # fmt: skip


def _stft(
    b: Builder,
    x: Value,
    n_fft: int,
    hop_length: int | None,
    win_length: int | None,
    window: Value | None,
    normalized: bool,
    onesided: bool | None,
    return_complex: bool | None,
    align_to_window: bool | None,
    **options: Any,
) -> Any:
    if align_to_window:
        raise LoweringError("stft: align_to_window=True")
    if window is not None and is_complex(window.dtype):
        raise LoweringError("stft: a complex window")
    length = win_length or n_fft
    if window is None and length != n_fft:
        window = b.call(mx.ones, (length,))
    if window is not None:
        options["window"] = window
    y = b.call(
        mx.fft.stft,
        _operand(b, "stft", x),
        n_fft,
        hop_length or n_fft // 4,
        length,
        onesided=not is_complex(x.dtype) if onesided is None else onesided,
        **_options("ortho" if normalized else None, **options),
    )
    whole = is_complex(x.dtype) if return_complex is None else return_complex
    return y if whole else lower_view_as_real(b, y)


@lowering(aten.istft.default)
def lower_istft(
    b: Builder,
    x: Value,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Value | None = None,
    center: bool = True,
    normalized: bool = False,
    onesided: bool | None = None,
    length: int | None = None,
    return_complex: bool = False,
) -> Any:
    """The inverse transform of (..., frequencies, frames)."""
    if return_complex or (window is not None and is_complex(window.dtype)):
        raise LoweringError("istft: a complex result")
    if window is None:
        window = b.call(mx.ones, (win_length or n_fft,))
    whole = x.shape[-2] == n_fft if onesided is None else not onesided
    options = _options("ortho" if normalized else None, length=length)
    if not center:
        options["center"] = False
    if whole:
        options["onesided"] = False
    return b.call(spectra.inverse_stft, x, n_fft, hop_length or n_fft // 4, window, **options)


def _cosine_window(terms: tuple[float, ...]) -> Callable[..., Any]:
    def lower(
        b: Builder,
        window_length: int,
        periodic: bool = True,
        *coefficients: float,
        dtype: torch.dtype | None = None,
        **_: Any,
    ) -> Any:
        """window(length, periodic), or hamming's (length, periodic, alpha, beta)."""
        chosen = (*coefficients, *terms[len(coefficients) :])
        y = b.call(spectra.cosine_window, window_length, periodic, chosen)
        return y if dtype is None else b.cast(y, mx_dtype(dtype))

    return lower


lowering(aten.hann_window.default, aten.hann_window.periodic)(_cosine_window((0.5, 0.5)))
lowering(aten.blackman_window.default, aten.blackman_window.periodic)(
    _cosine_window((0.42, 0.5, 0.08))
)
lowering(
    aten.hamming_window.default,
    aten.hamming_window.periodic,
    aten.hamming_window.periodic_alpha,
    aten.hamming_window.periodic_alpha_beta,
)(_cosine_window((0.54, 0.46)))


# Complex numbers


@lowering(aten.view_as_real.default)
def lower_view_as_real(b: Builder, x: Value) -> Any:
    """(...) complex → (..., 2)."""
    return b.call(mx.stack, [b.call(mx.real, x), b.call(mx.imag, x)], axis=-1)


@lowering(aten.view_as_complex.default)
def lower_view_as_complex(b: Builder, x: Value) -> Any:
    """(..., 2) → complex."""
    if x.dtype != mx.float32:
        raise LoweringError(f"view_as_complex: dtype={x.dtype}; MLX has complex64 only")
    return b.call(mx.squeeze, b.call(mx.view, x, mx.complex64), -1)
