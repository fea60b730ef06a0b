"""Convolutions that MLX does not have as one call."""

from __future__ import annotations

import mlx.core as mx

__all__ = ["grouped_conv3d"]


def grouped_conv3d(
    x: mx.array,
    weight: mx.array,
    stride: tuple[int, ...],
    padding: tuple[tuple[int, ...], tuple[int, ...]],
    kernel_dilation: tuple[int, ...],
    input_dilation: tuple[int, ...],
    groups: int,
    flip: bool,
) -> mx.array:
    """A 3-d convolution of (N, D, H, W, C) in groups of channels, which MLX has in 1-d and 2-d."""
    results = [
        mx.conv_general(
            inputs,
            filters,
            stride=stride,
            padding=padding,
            kernel_dilation=kernel_dilation,
            input_dilation=input_dilation,
            flip=flip,
        )
        for inputs, filters in zip(
            mx.split(x, groups, axis=-1), mx.split(weight, groups, axis=0), strict=True
        )
    ]
    return mx.concatenate(results, axis=-1)
