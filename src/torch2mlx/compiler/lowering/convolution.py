"""Convolutions, plain and transposed."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.layout import batched, channels_first, channels_last, per_axis
from torch2mlx.compiler.lowering.registry import LoweringError, lowering
from torch2mlx.compiler.lowering.types import is_floating
from torch2mlx.compiler.runtime.convolution import grouped_conv3d

__all__: list[str] = []

aten = torch.ops.aten

CONVOLUTIONS = {1: mx.conv1d, 2: mx.conv2d, 3: mx.conv3d}
TRANSPOSED = {1: mx.conv_transpose1d, 2: mx.conv_transpose2d, 3: mx.conv_transpose3d}


def _plain(numbers: Sequence[int]) -> Any:
    """One number for all axes where they agree, as one would write it."""
    return numbers[0] if len(set(numbers)) == 1 else tuple(numbers)


def _require_floating(name: str, x: Value) -> None:
    if not is_floating(x.dtype):
        raise LoweringError(f"{name}: dtype={x.dtype}; MLX convolves floating-point numbers only")


@lowering(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
@lowering(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)
def lower_conv(
    b: Builder,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] | str = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Value:
    """conv(input, weight, bias, stride, padding, dilation, groups).

    padding="same" puts the odd element after the data, as torch does.
    """
    rank = weight.ndim - 2
    stride, dilation = per_axis(stride, rank), per_axis(dilation, rank)
    if isinstance(padding, str):
        extents = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        before = tuple(n // 2 if padding == "same" else 0 for n in extents)
        after = tuple(n - n // 2 if padding == "same" else 0 for n in extents)
    else:
        before = after = per_axis(padding, rank)
    _require_floating(f"conv{rank}d", x)
    x, added = batched(b, x, rank + 2)
    x = channels_last(b, x)
    filters = channels_last(b, weight)
    if rank == 3 and groups > 1:
        y = b.call(
            grouped_conv3d, x, filters, stride, (before, after), dilation, (1,) * 3, groups, False
        )
    elif before == after:
        options = {"stride": stride, "padding": before, "dilation": dilation}
        defaults = {"stride": 1, "padding": 0, "dilation": 1}
        kwargs = {k: _plain(v) for k, v in options.items() if _plain(v) != defaults[k]}
        if groups != 1:
            kwargs["groups"] = groups
        y = b.call(CONVOLUTIONS[rank], x, filters, **kwargs)
    else:
        y = b.call(
            mx.conv_general,
            x,
            filters,
            stride=stride,
            padding=(before, after),
            kernel_dilation=dilation,
            groups=groups,
        )
    return _finish(b, y, bias, added)


@lowering(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def lower_conv_transpose(
    b: Builder,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,),
    groups: int = 1,
    dilation: Sequence[int] = (1,),
) -> Value:
    """conv_transpose(input, weight, bias, stride, padding, output_padding, groups, dilation)."""
    rank = weight.ndim - 2
    stride, dilation = per_axis(stride, rank), per_axis(dilation, rank)
    padding, output_padding = per_axis(padding, rank), per_axis(output_padding, rank)
    _require_floating(f"conv_transpose{rank}d", x)
    x, added = batched(b, x, rank + 2)
    x = channels_last(b, x)
    filters = _transposed_filters(b, weight, groups)
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    # MLX wants the border of the equivalent plain convolution not to be negative; what torch
    # crops beyond that is cut off afterwards.
    crop = tuple(max(p - r, 0) for p, r in zip(padding, reach, strict=True))
    before = tuple(min(p, r) for p, r in zip(padding, reach, strict=True))
    if any(crop) or (rank == 3 and groups > 1):
        borders = (
            tuple(r - p for r, p in zip(reach, before, strict=True)),
            tuple(r - p + o for r, p, o in zip(reach, before, output_padding, strict=True)),
        )
        if rank == 3 and groups > 1:
            y = b.call(
                grouped_conv3d, x, filters, (1,) * 3, borders, dilation, stride, groups, True
            )
        else:
            y = b.call(
                mx.conv_general,
                x,
                filters,
                padding=borders,
                kernel_dilation=dilation,
                input_dilation=stride,
                groups=groups,
                flip=True,
            )
        y = _cropped(b, y, crop)
    else:
        options = {"stride": stride, "padding": padding, "dilation": dilation}
        options["output_padding"] = output_padding
        defaults = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0}
        kwargs = {k: _plain(v) for k, v in options.items() if _plain(v) != defaults[k]}
        if groups != 1:
            kwargs["groups"] = groups
        y = b.call(TRANSPOSED[rank], x, filters, **kwargs)
    return _finish(b, y, bias, added)


def _transposed_filters(b: Builder, weight: Value, groups: int) -> Value:
    """(in, out / groups, *kernel) → (out, *kernel, in / groups)."""
    axes = tuple(range(2, weight.ndim))
    if groups == 1:
        result: Value = b.call(mx.transpose, weight, (1, *axes, 0))
        return result
    inputs, outputs, *kernel = weight.shape
    split = b.call(mx.reshape, weight, (groups, inputs // groups, outputs, *kernel))
    turned = b.call(mx.transpose, split, (0, 2, *(a + 1 for a in axes), 1))
    result = b.call(mx.flatten, turned, 0, 1)
    return result


def _cropped(b: Builder, y: Value, crop: tuple[int, ...]) -> Value:
    if not any(crop):
        return y
    key = (slice(None), *(slice(c, -c) if c else slice(None) for c in crop))
    result: Value = b.call(operator.getitem, y, key)
    return result


def _finish(b: Builder, y: Value, bias: Value | None, added: bool) -> Value:
    if bias is not None:
        y = b.call(mx.add, y, bias)
    y = channels_first(b, y)
    return b.call(mx.squeeze, y, 0) if added else y


@lowering(aten.convolution.default)
def lower_convolution(
    b: Builder,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Any:
    """convolution: either of the above, chosen by `transposed`."""
    if transposed:
        return lower_conv_transpose(
            b, x, weight, bias, stride, padding, output_padding, groups, dilation
        )
    return lower_conv(b, x, weight, bias, stride, padding, dilation, groups)
