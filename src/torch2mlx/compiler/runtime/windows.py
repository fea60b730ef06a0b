"""Sliding windows: taking them out of a tensor, and summing them back into one."""

from __future__ import annotations

import mlx.core as mx

__all__ = ["columns_to_image", "patches_to_columns", "sliding_windows"]


def sliding_windows(x: mx.array, axis: int, size: int, step: int) -> mx.array:
    """Windows of one axis: it becomes their number, a new last axis holds their elements."""
    count = (x.shape[axis] - size) // step + 1
    places = mx.arange(count)[:, None] * step + mx.arange(size)
    return mx.moveaxis(mx.take(x, places, axis=axis), axis + 1, -1)


def patches_to_columns(
    x: mx.array,
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int],
    stride: tuple[int, int],
) -> mx.array:
    """(..., channels, height, width) → (..., channels * kernel size, number of patches)."""
    x = mx.pad(x, [(0, 0)] * (x.ndim - 2) + [(p, p) for p in padding])
    rows, columns = _places(x.shape[-2:], kernel, dilation, stride)
    x = mx.take(mx.take(x, rows, axis=-2), columns, axis=-1)  # (..., kh, oh, kw, ow)
    x = mx.swapaxes(x, -3, -2)
    *batch, channels, kernel_h, kernel_w, out_h, out_w = x.shape
    return x.reshape(*batch, channels * kernel_h * kernel_w, out_h * out_w)


def columns_to_image(
    x: mx.array,
    size: tuple[int, int],
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int],
    stride: tuple[int, int],
) -> mx.array:
    """(..., channels * kernel size, number of patches) → (..., channels, *size), patches summed."""
    height, width = size[0] + 2 * padding[0], size[1] + 2 * padding[1]
    rows, columns = _places((height, width), kernel, dilation, stride)
    batch, channels = x.shape[:-2], x.shape[-2] // (kernel[0] * kernel[1])
    x = x.reshape(*batch, channels, *kernel, rows.shape[1], columns.shape[1])
    image = mx.zeros((*batch, channels, height, width), x.dtype)
    image = image.at[..., rows[:, None, :, None], columns[None, :, None, :]].add(x)
    return image[..., padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]


def _places(
    size: tuple[int, ...],
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    stride: tuple[int, int],
) -> list[mx.array]:
    """For height and width: the place of each kernel element (rows) in each window (columns)."""
    places = []
    for extent, k, d, s in zip(size, kernel, dilation, stride, strict=True):
        windows = (extent - d * (k - 1) - 1) // s + 1
        places.append(mx.arange(k)[:, None] * d + mx.arange(windows) * s)
    return places
