"""Windows of axes and patches of images, and elements regrouped between space and channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.registry import lowering
from torch2mlx.compiler.lowering.shape import (
    axis_of,
    lower_reshape,
    subscript,
)
from torch2mlx.compiler.runtime import shuffling, windows

__all__: list[str] = []

aten = torch.ops.aten


@lowering(aten.unfold.default)
def lower_unfold(b: Builder, x: Value, dimension: int, size: int, step: int) -> Value:
    """Windows of an axis: its extent becomes their number, a last axis holds them."""
    if x.ndim == 0:
        x = lower_reshape(b, x, (1,))
        if size == 0:
            return subscript(b, x, 0, slice(None, 0))
        return x
    axis = axis_of(dimension, x.ndim)
    result: Value = b.call(windows.sliding_windows, x, axis, size, step)
    return result


@lowering(aten.im2col.default)
def lower_im2col(
    b: Builder,
    x: Value,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Value:
    """Patches of (batch, channels, height, width) as columns."""
    result: Value = b.call(
        windows.patches_to_columns,
        x,
        kernel=tuple(kernel_size),
        dilation=tuple(dilation),
        padding=tuple(padding),
        stride=tuple(stride),
    )
    return result


@lowering(aten.col2im.default)
def lower_col2im(
    b: Builder,
    x: Value,
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Value:
    """Columns summed back into the image they are patches of."""
    result: Value = b.call(
        windows.columns_to_image,
        x,
        size=tuple(output_size),
        kernel=tuple(kernel_size),
        dilation=tuple(dilation),
        padding=tuple(padding),
        stride=tuple(stride),
    )
    return result


@lowering(aten.pixel_shuffle.default)
def lower_pixel_shuffle(b: Builder, x: Value, upscale_factor: int) -> Value:
    """Channels to space."""
    result: Value = b.call(shuffling.pixel_shuffle, x, upscale_factor)
    return result


@lowering(aten.pixel_unshuffle.default)
def lower_pixel_unshuffle(b: Builder, x: Value, downscale_factor: int) -> Value:
    """Space to channels."""
    result: Value = b.call(shuffling.pixel_unshuffle, x, downscale_factor)
    return result


@lowering(aten.channel_shuffle.default, aten.native_channel_shuffle.default)
def lower_channel_shuffle(b: Builder, x: Value, groups: int) -> Value:
    """Channels of groups interleaved."""
    result: Value = b.call(shuffling.channel_shuffle, x, groups)
    return result
