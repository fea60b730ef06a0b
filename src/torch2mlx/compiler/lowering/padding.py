"""Padding, in torch's terms: pairs of widths from the last axis backwards, negative ones crop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.indexing import lower_slice
from torch2mlx.compiler.lowering.registry import LoweringError, lowering
from torch2mlx.compiler.runtime import padding

__all__: list[str] = []

aten = torch.ops.aten


def _widths(x: Value, pad: Sequence[int]) -> list[tuple[int, int]]:
    """Widths (before, after) of each axis from the first on."""
    pairs = list(zip(pad[0::2], pad[1::2], strict=True))[::-1]
    return [(0, 0)] * (x.ndim - len(pairs)) + pairs


def _crop(b: Builder, x: Value, widths: Sequence[tuple[int, int]]) -> Value:
    """Negative widths as slices."""
    for axis, (before, after) in enumerate(widths):
        if before < 0 or after < 0:
            start = 0 - before if before < 0 else None
            stop = after if after < 0 else None
            x = lower_slice(b, x, axis, start, stop)
    return x


@lowering(aten.constant_pad_nd.default)
def lower_constant_pad(b: Builder, x: Value, pad: Sequence[int], value: Any = 0) -> Value:
    """Padded with a number; negative widths crop."""
    widths = _widths(x, pad)
    x = _crop(b, x, widths)
    wider = [(max(before, 0), max(after, 0)) for before, after in widths]
    if not any(map(any, wider)):
        return x
    if x.dtype == mx.bool_:
        value = bool(value)
    elif mx.issubdtype(x.dtype, mx.integer):
        value = int(value)
    result: Value
    if value == 0:
        result = b.call(mx.pad, x, wider)
    else:
        result = b.call(mx.pad, x, wider, constant_values=value)
    return result


@lowering(aten.reflection_pad1d.default, aten.reflection_pad2d.default)
@lowering(aten.reflection_pad3d.default)
def lower_reflection_pad(b: Builder, x: Value, pad: Sequence[int]) -> Value:
    """Padded with the mirror image, the border element once."""
    return _pad_axes(b, padding.reflect, x, pad)


@lowering(aten.replication_pad1d.default, aten.replication_pad2d.default)
@lowering(aten.replication_pad3d.default)
def lower_replication_pad(b: Builder, x: Value, pad: Sequence[int]) -> Value:
    """Padded with the border element."""
    if all(width >= 0 for width in pad) and x.array.size:
        result: Value = b.call(mx.pad, x, _widths(x, pad), mode="edge")
        return result
    return _pad_axes(b, padding.replicate, x, pad)


@lowering(aten._pad_circular.default)
def lower_circular_pad(b: Builder, x: Value, pad: Sequence[int]) -> Value:
    """Padded with the elements of the other end; negative widths crop first."""
    widths = _widths(x, pad)
    x = _crop(b, x, widths)
    wider = [max(n, 0) for pair in reversed(widths) for n in pair]
    return _pad_axes(b, padding.wrap, x, wider)


def _pad_axes(b: Builder, function: Any, x: Value, pad: Sequence[int]) -> Value:
    for axis, (before, after) in enumerate(_widths(x, pad)):
        if before or after:
            x = b.call(function, x, axis, before, after)
    return x


@lowering(aten.pad.default)
def lower_pad(
    b: Builder, x: Value, pad: Sequence[int], mode: str = "constant", value: Any = None
) -> Value:
    """Padded in any of torch's modes."""
    if mode == "constant":
        return lower_constant_pad(b, x, pad, 0 if value is None else value)
    modes = {
        "reflect": lower_reflection_pad,
        "replicate": lower_replication_pad,
        "circular": lower_circular_pad,
    }
    if mode not in modes:
        raise LoweringError(f"aten.pad: mode={mode!r} is unknown")
    return modes[mode](b, x, pad)
