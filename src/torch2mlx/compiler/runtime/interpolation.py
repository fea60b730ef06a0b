"""Resizing the spatial axes of channels-last arrays (N, *spatial, C) as PyTorch does.

Every function takes the output's extents (`size`), the factors (`scale`), or both: then the
extents decide how many places there are, the factors where they lie.  One number an axis.
"""

from __future__ import annotations

import math

import mlx.core as mx

__all__ = [
    "interpolate_antialiased",
    "interpolate_cubic",
    "interpolate_linear",
    "interpolate_nearest",
]

Factors = tuple[float | None, ...] | None


def output_extents(
    x: mx.array, size: tuple[int, ...] | None, scale: Factors
) -> list[tuple[int, int, int, float | None]]:
    """(axis, extent, new extent, factor) of each spatial axis."""
    spatial = x.shape[1:-1]
    factors = scale or (None,) * len(spatial)
    sizes = size or tuple(int(n * (f or 1)) for n, f in zip(spatial, factors, strict=True))
    return [
        (axis + 1, n, m, f)
        for axis, (n, m, f) in enumerate(zip(spatial, sizes, factors, strict=True))
    ]


def step_between(extent: int, count: int, factor: float | None, align_corners: bool) -> float:
    """How far apart two neighbours of the output lie in the input."""
    if align_corners:
        return (extent - 1) / (count - 1) if count > 1 else 0.0
    return 1 / factor if factor else extent / count


def positions(count: int, step: float, align_corners: bool) -> mx.array:
    """Where the output's places lie in the input, in float32 as PyTorch computes them."""
    places = mx.arange(count).astype(mx.float32)
    return places * step if align_corners else (places + 0.5) * step - 0.5


def weighted_taps(x: mx.array, axis: int, taps: mx.array, weights: mx.array) -> mx.array:
    """Replace an axis by weighted sums of some of its elements; both (count, taps)."""
    last = x.shape[axis] - 1
    values = mx.take(x, mx.clip(taps, 0, last), axis=axis)
    weights = weights.reshape(*weights.shape, *(1,) * (x.ndim - axis - 1))
    return mx.sum(values * weights, axis=axis + 1)


def interpolate_nearest(
    x: mx.array,
    size: tuple[int, ...] | None = None,
    scale: Factors = None,
    exact: bool = False,
) -> mx.array:
    """The nearest neighbour: below (PyTorch's "nearest") or of the centre ("nearest-exact")."""
    for axis, extent, count, factor in output_extents(x, size, scale):
        times = count // max(extent, 1)
        if times * extent == count and times <= 64 and factor in (None, times):
            x = mx.repeat(x, times, axis=axis) if times > 1 else x
            continue
        step = step_between(extent, count, factor, align_corners=False)
        places = positions(count, step, align_corners=not exact)
        index = mx.floor(places + 0.5 if exact else places).astype(mx.int32)
        x = mx.take(x, mx.clip(index, 0, extent - 1), axis=axis)
    return x


def interpolate_linear(
    x: mx.array,
    size: tuple[int, ...] | None = None,
    scale: Factors = None,
    align_corners: bool = False,
) -> mx.array:
    """Linear, bilinear or trilinear, one axis after the other."""
    result = x
    for axis, extent, count, factor in output_extents(x, size, scale):
        if count == extent:
            continue
        step = step_between(extent, count, factor, align_corners)
        places = mx.clip(positions(count, step, align_corners), 0, extent - 1)
        below = mx.floor(places)
        share = places - below
        taps = below.astype(mx.int32)[:, None] + mx.arange(2)
        result = weighted_taps(result, axis, taps, mx.stack([1 - share, share], axis=-1))
    return result.astype(x.dtype)


def cubic_weights(share: mx.array, a: float = -0.75) -> mx.array:
    """Weights of the neighbours at -1, 0, 1, 2 of a place (Keys, 1981); a new last axis."""

    def near(d: mx.array) -> mx.array:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: mx.array) -> mx.array:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return mx.stack([far(share + 1), near(share), near(1 - share), far(2 - share)], axis=-1)


def interpolate_cubic(
    x: mx.array,
    size: tuple[int, ...] | None = None,
    scale: Factors = None,
    align_corners: bool = False,
) -> mx.array:
    """Bicubic, one axis after the other; the border repeats."""
    result = x
    for axis, extent, count, factor in output_extents(x, size, scale):
        step = step_between(extent, count, factor, align_corners)
        places = positions(count, step, align_corners)
        below = mx.floor(places)
        taps = below.astype(mx.int32)[:, None] + mx.arange(-1, 3)
        result = weighted_taps(result, axis, taps, cubic_weights(places - below))
    return result.astype(x.dtype)


def interpolate_antialiased(
    x: mx.array,
    mode: str,
    size: tuple[int, ...] | None = None,
    scale: Factors = None,
    align_corners: bool = False,
) -> mx.array:
    """Mode "linear" or "cubic" with a filter as wide as a step of the output, as in Pillow."""
    result = x
    for axis, extent, count, factor in output_extents(x, size, scale):
        if count == extent:
            continue
        step = step_between(extent, count, factor, align_corners)
        stretch = max(step, 1.0)
        support = stretch * (1 if mode == "linear" else 2)
        centers = (mx.arange(count).astype(mx.float32) + 0.5) * step
        first = mx.maximum((centers - support + 0.5).astype(mx.int32), 0)
        stop = mx.minimum((centers + support + 0.5).astype(mx.int32), extent)
        taps = first[:, None] + mx.arange(2 * math.ceil(support) + 1)
        distance = mx.abs((taps - centers[:, None] + 0.5) / stretch)
        weights = filter_weights(mode, distance)
        weights = mx.where(taps < stop[:, None], weights, 0)
        weights = weights / mx.sum(weights, axis=-1, keepdims=True)
        result = weighted_taps(result, axis, taps, weights)
    return result.astype(x.dtype)


def filter_weights(mode: str, distance: mx.array) -> mx.array:
    """The filter's value at a distance from its centre, 0 beyond its support."""
    if mode == "linear":
        return mx.maximum(1 - distance, 0)
    a = -0.5
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return mx.where(distance < 1, near, mx.where(distance < 2, far, 0))
