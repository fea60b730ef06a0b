"""Pooling: maximum and mean, fixed and adaptive windows, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.layout import batched, channels_first, channels_last, per_axis
from torch2mlx.compiler.lowering.registry import LoweringError, lowering
from torch2mlx.compiler.lowering.types import is_bool, is_floating
from torch2mlx.compiler.runtime import pooling

__all__: list[str] = []

aten = torch.ops.aten


def _pool(b: Builder, x: Value, rank: int, function: Callable[..., Any], *args: Any) -> Any:
    """Call a pooling function of channels-last arrays on a tensor in torch's layout."""
    if is_bool(x.dtype):
        raise LoweringError(f"{function.__name__}: dtype=bool")
    x, added = batched(b, x, rank + 2)
    results = b.call(function, channels_last(b, x), *args)
    several = isinstance(results, tuple)
    turned = tuple(channels_first(b, r) for r in (results if several else (results,)))
    if added:
        turned = tuple(b.call(mx.squeeze, r, 0) for r in turned)
    return turned if several else turned[0]


def _lower_max(rank: int, function: Callable[..., Any]) -> Callable[..., Any]:
    def lower(
        b: Builder,
        x: Value,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,),
        ceil_mode: bool = False,
    ) -> Any:
        """max_pool(input, kernel_size, stride=kernel_size, padding, dilation, ceil_mode)."""
        kernel = per_axis(kernel_size, rank)
        strides = per_axis(stride, rank) if stride else kernel
        paddings, dilations = per_axis(padding, rank), per_axis(dilation, rank)
        args: tuple[Any, ...] = (kernel, strides, paddings, dilations)
        return _pool(b, x, rank, function, *args, *((True,) if ceil_mode else ()))

    return lower


def _lower_avg(rank: int) -> Callable[..., Any]:
    def lower(
        b: Builder,
        x: Value,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Any:
        """avg_pool(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor)."""
        if not is_floating(x.dtype):
            raise LoweringError(f"avg_pool{rank}d: dtype={x.dtype}")
        kernel = per_axis(kernel_size, rank)
        strides = per_axis(stride, rank) if stride else kernel
        options = {
            "ceil_mode": (ceil_mode, False),
            "count_include_pad": (count_include_pad, True),
            "divisor_override": (divisor_override, None),
        }
        kwargs = {k: value for k, (value, default) in options.items() if value != default}

        def call(x: Value) -> Any:
            args = (kernel, strides, per_axis(padding, rank))
            return b.call(pooling.avg_pool, channels_last(b, x), *args, **kwargs)

        x, added = batched(b, x, rank + 2)
        y = channels_first(b, call(x))
        return b.call(mx.squeeze, y, 0) if added else y

    return lower


def _lower_adaptive(rank: int, function: Callable[..., Any]) -> Callable[..., Any]:
    def lower(b: Builder, x: Value, output_size: Sequence[int]) -> Any:
        """adaptive_pool(input, output_size): window i is [floor(i n/m), ceil((i+1) n/m))."""
        if not is_floating(x.dtype):
            raise LoweringError(f"{function.__name__}: dtype={x.dtype}")
        size = per_axis(output_size, rank)
        if 0 in size:
            raise LoweringError(f"{function.__name__}: output_size={size}")
        if function is pooling.adaptive_avg_pool and set(size) == {1}:
            axes = tuple(range(x.ndim - rank, x.ndim))
            return b.call(mx.mean, x, axis=axes, keepdims=True)
        return _pool(b, x, rank, function, size)

    return lower


for _rank, _plain, _indexed, _avg, _adaptive_avg, _adaptive_max in (
    (
        1,
        aten.max_pool1d.default,
        aten.max_pool1d_with_indices.default,
        [aten.avg_pool1d.default],
        [aten.adaptive_avg_pool1d.default],
        aten.adaptive_max_pool1d.default,
    ),
    (
        2,
        aten.max_pool2d.default,
        aten.max_pool2d_with_indices.default,
        [aten.avg_pool2d.default],
        [aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default],
        aten.adaptive_max_pool2d.default,
    ),
    (
        3,
        aten.max_pool3d.default,
        aten.max_pool3d_with_indices.default,
        [aten.avg_pool3d.default],
        [aten.adaptive_avg_pool3d.default, aten._adaptive_avg_pool3d.default],
        aten.adaptive_max_pool3d.default,
    ),
):
    lowering(_plain)(_lower_max(_rank, pooling.max_pool))
    lowering(_indexed)(_lower_max(_rank, pooling.max_pool_with_indices))
    lowering(*_avg)(_lower_avg(_rank))
    lowering(*_adaptive_avg)(_lower_adaptive(_rank, pooling.adaptive_avg_pool))
    lowering(_adaptive_max)(_lower_adaptive(_rank, pooling.adaptive_max_pool_with_indices))


@lowering(aten.max_unpool2d.default, aten.max_unpool3d.default)
def lower_max_unpool(
    b: Builder,
    x: Value,
    indices: Value,
    output_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (),
) -> Value:
    """max_unpool(input, indices, output_size): stride and padding only served to find the size."""
    result: Value = b.call(pooling.max_unpool, x, indices, tuple(output_size))
    return result


@lowering(aten.fractional_max_pool2d.default, aten.fractional_max_pool3d.default)
def lower_fractional_max_pool(
    b: Builder,
    x: Value,
    kernel_size: Sequence[int],
    output_size: Sequence[int],
    random_samples: Value,
) -> Any:
    """fractional_max_pool(input, kernel_size, output_size, random_samples) → values, indices."""
    rank = 2 if len(output_size) == 2 else 3
    kernel, size = per_axis(kernel_size, rank), per_axis(output_size, rank)
    x, added = batched(b, x, rank + 2)
    results = b.call(pooling.fractional_max_pool, x, kernel, size, random_samples)
    return tuple(b.call(mx.squeeze, r, 0) for r in results) if added else results
