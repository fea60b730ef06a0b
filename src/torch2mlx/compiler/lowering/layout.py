"""Between torch's layout, channels second, and MLX's, channels last."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from torch2mlx.compiler.builder import Builder, Value

__all__ = ["batched", "channels_first", "channels_last", "per_axis"]


def channels_last(b: Builder, x: Value) -> Value:
    """(batch, channels, *spatial) → (batch, *spatial, channels)."""
    if x.ndim < 3:
        return x
    result: Value = b.call(mx.transpose, x, (0, *range(2, x.ndim), 1))
    return result


def channels_first(b: Builder, x: Value) -> Value:
    """(batch, *spatial, channels) → (batch, channels, *spatial)."""
    if x.ndim < 3:
        return x
    result: Value = b.call(mx.transpose, x, (0, x.ndim - 1, *range(1, x.ndim - 1)))
    return result


def batched(b: Builder, x: Value, ndim: int) -> tuple[Value, bool]:
    """The tensor with a batch axis, and whether that axis was added."""
    if x.ndim == ndim:
        return x, False
    return b.call(mx.expand_dims, x, 0), True


def per_axis(values: int | Sequence[int], count: int) -> tuple[int, ...]:
    """One number an axis: torch repeats a single one."""
    if isinstance(values, int):
        return (values,) * count
    return tuple(values) * count if len(values) == 1 else tuple(values)
