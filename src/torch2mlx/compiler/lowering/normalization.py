"""Normalisation: by batch, layer, group, instance and root mean square."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.layout import channels_first, channels_last
from torch2mlx.compiler.lowering.registry import LoweringError, lowering
from torch2mlx.compiler.lowering.types import is_floating
from torch2mlx.compiler.runtime.normalization import batch_statistics, group_norm

__all__: list[str] = []

aten = torch.ops.aten


def _require_floating(name: str, x: Value) -> None:
    if not is_floating(x.dtype):
        raise LoweringError(f"{name}: dtype={x.dtype}")


def _scaled(b: Builder, x: Value, weight: Value | None, bias: Value | None) -> Value:
    if weight is not None:
        x = b.call(mx.multiply, x, weight)
    return x if bias is None else b.call(mx.add, x, bias)


# Batch


def _normalized(
    b: Builder,
    x: Value,
    mean: Value,
    variance: Value,
    weight: Value | None,
    bias: Value | None,
    eps: float,
) -> tuple[Value, Value]:
    """The result, and 1 / standard deviation; statistics and weights are one number a channel.

    Scale and shift depend on parameters only, so that they can be folded into a convolution.
    """
    scale = b.call(mx.rsqrt, b.call(mx.add, b.cast(variance, mx.float32), eps))
    inverse = scale
    if weight is not None:
        scale = b.call(mx.multiply, scale, weight)
    shift = b.call(mx.multiply, mean, scale)
    shift = b.call(mx.negative, shift) if bias is None else b.call(mx.subtract, bias, shift)
    y = b.call(mx.multiply, channels_last(b, x), scale)
    y = channels_first(b, b.call(mx.add, y, shift))
    return b.cast(y, x.dtype), inverse


@lowering(aten.batch_norm.default)
def lower_batch_norm(
    b: Builder,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value | None,
    running_var: Value | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = False,
) -> Value:
    """batch_norm; statistics of the batch only where there are no running ones to update."""
    if training or running_mean is None or running_var is None:
        if running_mean is not None:
            raise LoweringError("batch_norm: training=True updates the running statistics")
        return _batch_norm_of_batch(b, x, weight, bias, eps)[0]
    _require_floating("batch_norm", x)
    return _normalized(b, x, running_mean, running_var, weight, bias, eps)[0]


@lowering(aten._native_batch_norm_legit_no_training.default)
def lower_batch_norm_inference(
    b: Builder,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value,
    running_var: Value,
    momentum: float,
    eps: float,
) -> tuple[Value, Value, Value]:
    """batch_norm with running statistics; the saved statistics are empty, as in torch."""
    _require_floating("batch_norm", x)
    y, _ = _normalized(b, x, running_mean, running_var, weight, bias, eps)
    return y, b.call(mx.zeros, (0,)), b.call(mx.zeros, (0,))


@lowering(aten.native_batch_norm.default)
def lower_native_batch_norm(
    b: Builder,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value | None,
    running_var: Value | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Any:
    """native_batch_norm: as batch_norm, with the saved statistics."""
    if not training and running_mean is not None and running_var is not None:
        return lower_batch_norm_inference(
            b, x, weight, bias, running_mean, running_var, momentum, eps
        )
    if running_mean is not None:
        raise LoweringError("native_batch_norm: training=True updates the running statistics")
    return _batch_norm_of_batch(b, x, weight, bias, eps)[:3]


def _batch_norm_of_batch(
    b: Builder, x: Value, weight: Value | None, bias: Value | None, eps: float
) -> tuple[Value, Value, Value, Value]:
    """(result, mean, 1 / standard deviation, biased variance) with statistics of the batch."""
    _require_floating("batch_norm", x)
    axes = (0, *range(2, x.ndim))
    mean, variance = b.call(batch_statistics, x, axes)
    y, inverse = _normalized(b, x, mean, variance, weight, bias, eps)
    return y, mean, inverse, variance


@lowering(aten._native_batch_norm_legit.no_stats)
def lower_batch_norm_no_stats(
    b: Builder,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Value, ...]:
    """batch_norm of a layer that tracks no statistics: those of the batch are used."""
    return _batch_norm_of_batch(b, x, weight, bias, eps)[:3]


@lowering(aten._native_batch_norm_legit_functional.default)
def lower_batch_norm_functional(
    b: Builder,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value,
    running_var: Value,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Value, ...]:
    """batch_norm in training: also the new running mean and (unbiased) variance."""
    if not training:
        results = lower_batch_norm_inference(
            b, x, weight, bias, running_mean, running_var, momentum, eps
        )
        return (*results, running_mean, running_var)
    y, mean, inverse, variance = _batch_norm_of_batch(b, x, weight, bias, eps)
    count: int = x.shape[0]
    for extent in x.shape[2:]:
        count = count * extent
    unbiased = b.call(mx.divide, b.call(mx.multiply, variance, count), count - 1)
    updated = []
    for old, new in ((running_mean, mean), (running_var, unbiased)):
        kept = b.call(mx.multiply, old, 1 - momentum)
        updated.append(b.call(mx.add, kept, b.call(mx.multiply, new, momentum)))
    return (y, mean, inverse, *updated)


@lowering(aten.instance_norm.default)
def lower_instance_norm(
    b: Builder,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value | None,
    running_var: Value | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = False,
) -> Value:
    """instance_norm: each channel of each sample by itself, or by the running statistics."""
    _require_floating("instance_norm", x)
    if not use_input_stats and running_mean is not None and running_var is not None:
        return _normalized(b, x, running_mean, running_var, weight, bias, eps)[0]
    if running_mean is not None:
        raise LoweringError("instance_norm: use_input_stats=True updates the running statistics")
    flat = b.call(mx.fast.layer_norm, b.call(mx.flatten, x, 2), None, None, eps)
    y = channels_last(b, b.call(mx.unflatten, flat, 2, x.shape[2:]) if x.ndim > 3 else flat)
    return channels_first(b, _scaled(b, y, weight, bias))


# Layer


def _flat(b: Builder, x: Value | None, count: int) -> Any:
    """The last `count` axes as one; MLX normalises over the last."""
    if x is None or count == 1:
        return x
    return b.call(mx.flatten, x, -count) if count else b.call(mx.expand_dims, x, -1)


def _unflat(b: Builder, y: Value, x: Value, count: int) -> Value:
    if count == 1:
        return y
    result: Value = b.call(mx.unflatten, y, -1, tuple(x.shape[-count:]))
    return result


@lowering(aten.layer_norm.default)
def lower_layer_norm(
    b: Builder,
    x: Value,
    normalized_shape: Sequence[int],
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Value:
    """layer_norm over the last `len(normalized_shape)` axes."""
    _require_floating("layer_norm", x)
    count = len(normalized_shape)
    args = (_flat(b, weight, count), _flat(b, bias, count), eps)
    return _unflat(b, b.call(mx.fast.layer_norm, _flat(b, x, count), *args), x, count)


@lowering(aten.native_layer_norm.default)
def lower_native_layer_norm(
    b: Builder,
    x: Value,
    normalized_shape: Sequence[int],
    weight: Value | None,
    bias: Value | None,
    eps: float,
) -> tuple[Any, Value, Value]:
    """layer_norm with the mean and 1 / standard deviation it used."""
    y = lower_layer_norm(b, x, normalized_shape, weight, bias, eps)
    axes = tuple(range(x.ndim - len(normalized_shape), x.ndim))
    single = b.cast(x, mx.float32)
    mean = b.call(mx.mean, single, axis=axes, keepdims=True)
    variance = b.call(mx.var, single, axis=axes, keepdims=True)
    return y, mean, b.call(mx.rsqrt, b.call(mx.add, variance, eps))


def _rms_eps(x: Value, eps: float | None) -> float:
    """By default the machine epsilon of float32, in which torch computes halves, too."""
    return float(torch.finfo(torch.float32).eps) if eps is None else eps


@lowering(aten.rms_norm.default)
def lower_rms_norm(
    b: Builder,
    x: Value,
    normalized_shape: Sequence[int],
    weight: Value | None = None,
    eps: float | None = None,
) -> Value:
    """rms_norm over the last `len(normalized_shape)` axes."""
    _require_floating("rms_norm", x)
    count = len(normalized_shape)
    args = (_flat(b, weight, count), _rms_eps(x, eps))
    return _unflat(b, b.call(mx.fast.rms_norm, _flat(b, x, count), *args), x, count)


@lowering(aten._fused_rms_norm.default)
def lower_fused_rms_norm(
    b: Builder,
    x: Value,
    normalized_shape: Sequence[int],
    weight: Value | None,
    eps: float | None,
) -> tuple[Any, Value]:
    """rms_norm with the 1 / root mean square it used."""
    y = lower_rms_norm(b, x, normalized_shape, weight, eps)
    axes = tuple(range(x.ndim - len(normalized_shape), x.ndim))
    square = b.call(mx.square, b.cast(x, mx.float32))
    mean = b.call(mx.mean, square, axis=axes, keepdims=True)
    return y, b.call(mx.rsqrt, b.call(mx.add, mean, _rms_eps(x, eps)))


# Group


@lowering(aten.group_norm.default)
def lower_group_norm(
    b: Builder,
    x: Value,
    num_groups: int,
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Value:
    """group_norm of (batch, channels, ...)."""
    _require_floating("group_norm", x)
    y = b.call(group_norm, channels_last(b, x), num_groups, eps)
    return channels_first(b, _scaled(b, y, weight, bias))


@lowering(aten.native_group_norm.default)
def lower_native_group_norm(
    b: Builder,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    batch: int,
    channels: int,
    positions: int,
    group: int,
    eps: float,
) -> tuple[Any, Value, Value]:
    """group_norm with the mean and 1 / standard deviation of each group."""
    y = lower_group_norm(b, x, group, weight, bias, eps)
    single = b.call(mx.unflatten, b.cast(x, mx.float32), 1, (group, channels // group))
    single = b.call(mx.flatten, single, 2)
    variance = b.call(mx.var, single, axis=-1)
    return y, b.call(mx.mean, single, axis=-1), b.call(mx.rsqrt, b.call(mx.add, variance, eps))


# Weights


def _norm_except(b: Builder, v: Value, dim: int) -> Value:
    """The 2-norm over all axes but `dim` (-1: over all)."""
    axes = tuple(a for a in range(v.ndim) if dim == -1 or a != dim % v.ndim)
    square = b.call(mx.sum, b.call(mx.square, v), axis=axes, keepdims=dim != -1)
    result: Value = b.call(mx.sqrt, square)
    return result


@lowering(aten._weight_norm.default)
def lower_weight_norm(b: Builder, v: Value, g: Value, dim: int = 0) -> Any:
    """V · g / |v|, the norm taken over all axes but `dim`."""
    return lower_weight_norm_interface(b, v, g, dim)[0]


@lowering(aten._weight_norm_interface.default)
def lower_weight_norm_interface(
    b: Builder, v: Value, g: Value, dim: int = 0
) -> tuple[Value, Value]:
    """V · g / |v|, and |v|."""
    norm = _norm_except(b, v, dim)
    return b.call(mx.multiply, v, b.call(mx.divide, g, norm)), norm


@lowering(aten.norm_except_dim.default)
def lower_norm_except_dim(b: Builder, v: Value, pow: int = 2, dim: int = 0) -> Value:  # noqa: A002
    """The norm over all axes but one."""
    if pow != 2:
        raise LoweringError(f"norm_except_dim: pow={pow}")
    return _norm_except(b, v, dim)
