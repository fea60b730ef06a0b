"""Reading an image at given places, and making such places."""

from __future__ import annotations

from itertools import product

import mlx.core as mx

__all__ = ["affine_grid", "grid_sample"]


def grid_sample(
    x: mx.array,
    grid: mx.array,
    mode: str = "linear",
    padding: str = "zeros",
    align_corners: bool = False,
) -> mx.array:
    """Sample (N, *spatial, C) at a grid (N, *places, rank) of coordinates in [-1, 1].

    Args:
        x: the images.
        grid: places; the last spatial axis comes first in each coordinate.
        mode: "linear", "nearest" or "cubic".
        padding: what lies outside: "zeros", "border" or "reflection".
        align_corners: whether -1 and 1 are the centres of the border pixels, or their edges.

    Returns:
        (N, *places, C).
    """
    spatial = x.shape[1:-1]
    places = [grid[..., len(spatial) - 1 - axis].astype(mx.float32) for axis in range(len(spatial))]
    taps = [
        axis_taps(place, extent, mode, padding, align_corners)
        for place, extent in zip(places, spatial, strict=True)
    ]
    flat = mx.flatten(x, 1, len(spatial))
    total = mx.zeros((*grid.shape[:-1], x.shape[-1]), mx.float32)
    for combination in product(*taps):
        index = mx.zeros(grid.shape[:-1], mx.int32)
        weight = mx.ones(grid.shape[:-1])
        for (tap, share), extent in zip(combination, spatial, strict=True):
            inside = (tap >= 0) & (tap <= extent - 1)
            index = index * extent + mx.where(inside, tap, 0).astype(mx.int32)
            weight = weight * mx.where(inside, share, 0)
        values = mx.take_along_axis(flat, mx.flatten(index, 1)[..., None], axis=1)
        total = total + values.reshape(total.shape) * weight[..., None]
    return total.astype(x.dtype)


def axis_taps(
    place: mx.array, extent: int, mode: str, padding: str, align_corners: bool
) -> list[tuple[mx.array, mx.array]]:
    """The pixels of one axis that a place needs, and their weights."""
    if align_corners:
        place = (place + 1) / 2 * (extent - 1)
    else:
        place = ((place + 1) * extent - 1) / 2
    if mode == "cubic":
        below = mx.floor(place)
        return [
            (into_image(below + (i - 1), extent, padding, align_corners), weight)
            for i, weight in enumerate(cubic_shares(place - below))
        ]
    place = into_image(place, extent, padding, align_corners)
    if mode == "nearest":
        return [(mx.round(place), mx.ones_like(place))]
    below = mx.floor(place)
    return [(below, below + 1 - place), (below + 1, place - below)]


def cubic_shares(share: mx.array, a: float = -0.75) -> list[mx.array]:
    """Weights of the neighbours at -1, 0, 1, 2 of a place (Keys, 1981)."""
    weights = []
    for distance in (share + 1, share, 1 - share, 2 - share):
        near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
        far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
        weights.append(mx.where(distance <= 1, near, far))
    return weights


def into_image(place: mx.array, extent: int, padding: str, align_corners: bool) -> mx.array:
    """Move coordinates outside of the image to where the padding takes its values from."""
    if padding == "zeros":
        return place
    if padding == "reflection":
        low = 0.0 if align_corners else -0.5
        span = extent - 1 if align_corners else extent
        if span == 0:
            return mx.zeros_like(place)
        distance = mx.abs(place - low)
        flips = mx.floor(distance / span)
        extra = distance - flips * span
        place = mx.where(flips % 2 == 0, extra + low, span - extra + low)
    return mx.clip(place, 0, extent - 1)


def affine_grid(theta: mx.array, size: tuple[int, ...], align_corners: bool) -> mx.array:
    """The places (N, *spatial, rank) that an affine map (N, rank, rank + 1) sends pixels to."""
    axes = []
    for extent in size[2:]:
        axis = mx.linspace(-1, 1, extent) if extent > 1 else mx.zeros((1,))
        axes.append(axis if align_corners else axis * (extent - 1) / extent)
    columns = mx.meshgrid(*axes, indexing="ij")[::-1]
    base = mx.stack([*columns, mx.ones(size[2:])], axis=-1).astype(theta.dtype)
    flat = mx.flatten(base, 0, -2) @ mx.swapaxes(theta, 1, 2)
    return flat.reshape(theta.shape[0], *size[2:], theta.shape[1])
