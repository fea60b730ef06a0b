"""Rearrangements between channels and space, with channels before height and width."""

from __future__ import annotations

import mlx.core as mx

__all__ = ["channel_shuffle", "pixel_shuffle", "pixel_unshuffle"]


def pixel_shuffle(x: mx.array, factor: int) -> mx.array:
    """(..., c * factor², h, w) → (..., c, h * factor, w * factor)."""
    *batch, channels, height, width = x.shape
    channels //= factor * factor
    x = x.reshape(*batch, channels, factor, factor, height, width)
    x = mx.swapaxes(mx.moveaxis(x, -3, -1), -4, -3)  # (..., c, h, factor, w, factor)
    return x.reshape(*batch, channels, height * factor, width * factor)


def pixel_unshuffle(x: mx.array, factor: int) -> mx.array:
    """(..., c, h * factor, w * factor) → (..., c * factor², h, w)."""
    *batch, channels, height, width = x.shape
    height, width = height // factor, width // factor
    x = x.reshape(*batch, channels, height, factor, width, factor)
    x = mx.moveaxis(mx.moveaxis(x, -1, -4), -2, -4)  # (..., c, factor, factor, h, w)
    return x.reshape(*batch, channels * factor * factor, height, width)


def channel_shuffle(x: mx.array, groups: int) -> mx.array:
    """(n, groups * c, ...) → the same shape, channel i of every group before channel i + 1."""
    n, channels, *space = x.shape
    x = x.reshape(n, groups, channels // groups, *space)
    return mx.swapaxes(x, 1, 2).reshape(n, channels, *space)
