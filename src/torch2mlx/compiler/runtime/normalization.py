"""Normalisation that `mx.fast` does not have."""

from __future__ import annotations

from math import prod

import mlx.core as mx

__all__ = ["batch_statistics", "group_norm"]


def batch_statistics(x: mx.array, axes: tuple[int, ...]) -> tuple[mx.array, mx.array]:
    """Mean and biased variance over some axes, in float32."""
    x = x.astype(mx.float32)
    return mx.mean(x, axis=axes), mx.var(x, axis=axes)


def group_norm(x: mx.array, num_groups: int, eps: float) -> mx.array:
    """Normalise (N, *spatial, C) over each group of channels and all places."""
    batch, *spatial, channels = x.shape
    groups = x.reshape(batch, prod(spatial), num_groups, channels // num_groups)
    groups = mx.transpose(groups, (0, 2, 1, 3))
    normalized = mx.fast.layer_norm(mx.flatten(groups, 2), None, None, eps)
    normalized = mx.transpose(normalized.reshape(groups.shape), (0, 2, 1, 3))
    return normalized.reshape(x.shape)
