"""Losses of classifiers, and of shares and probabilities."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.registry import LoweringError, lowering
from torch2mlx.compiler.lowering.types import is_floating, promote
from torch2mlx.compiler.runtime import losses

__all__: list[str] = []

aten = torch.ops.aten

REDUCTIONS = ("none", "mean", "sum")


@lowering(aten.nll_loss_forward.default, aten.nll_loss2d_forward.default)
def lower_nll_loss_forward(
    b: Builder,
    x: Value,
    target: Value,
    weight: Value | None = None,
    reduction: int = 1,
    ignore_index: int = -100,
) -> Any:
    """nll_loss(input, target, weight, reduction, ignore_index) → loss, total weight."""
    args = (x, target, weight, REDUCTIONS[reduction], ignore_index)
    loss, total = b.call(losses.nll_loss, *args)
    # Torch leaves the total at 0 where it is not needed.
    return loss, b.call(mx.zeros, (), x.dtype) if reduction == 0 and x.ndim > 1 else total


@lowering(aten.nll_loss.default, aten.nll_loss2d.default, aten.nll_loss_nd.default)
def lower_nll_loss(b: Builder, x: Value, target: Value, *args: Any, **kwargs: Any) -> Any:
    """nll_loss(input, target, weight, reduction, ignore_index)."""
    return lower_nll_loss_forward(b, x, target, *args, **kwargs)[0]


@lowering(aten.cross_entropy_loss.default)
def lower_cross_entropy(
    b: Builder,
    x: Value,
    target: Value,
    weight: Value | None = None,
    reduction: int = 1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Any:
    """cross_entropy_loss(input, target, weight, reduction, ignore_index, label_smoothing)."""
    name = REDUCTIONS[reduction]
    if is_floating(target.dtype):
        return b.call(losses.cross_entropy_of_shares, x, target, weight, name, label_smoothing)
    args = (x, target, weight, name, ignore_index, label_smoothing)
    return b.call(losses.cross_entropy, *args)


def _reduced(b: Builder, values: Value, reduction: int) -> Any:
    if reduction == 0:
        return values
    return b.call(mx.mean if reduction == 1 else mx.sum, values)


@lowering(aten.binary_cross_entropy.default)
def lower_binary_cross_entropy(
    b: Builder, x: Value, target: Value, weight: Value | None = None, reduction: int = 1
) -> Any:
    """binary_cross_entropy(input, target, weight, reduction)."""
    y = b.call(losses.binary_cross_entropy, x, target)
    return _reduced(b, y if weight is None else b.call(mx.multiply, y, weight), reduction)


@lowering(aten.binary_cross_entropy_with_logits.default)
def lower_binary_cross_entropy_with_logits(
    b: Builder,
    x: Value,
    target: Value,
    weight: Value | None = None,
    pos_weight: Value | None = None,
    reduction: int = 1,
) -> Any:
    """binary_cross_entropy_with_logits(input, target, weight, pos_weight, reduction)."""
    args = (x, target) if pos_weight is None else (x, target, pos_weight)
    y = b.call(losses.binary_cross_entropy_with_logits, *args)
    return _reduced(b, y if weight is None else b.call(mx.multiply, y, weight), reduction)


@lowering(aten.kl_div.default)
def lower_kl_div(
    b: Builder, x: Value, target: Value, reduction: int = 1, *, log_target: bool = False
) -> Any:
    """kl_div(input, target, reduction, log_target)."""
    x, target = promote(b, x, target)
    return _reduced(b, b.call(losses.kl_divergence, x, target, log_target), reduction)


@lowering(aten.ctc_loss.IntList, aten.ctc_loss.Tensor, aten._ctc_loss.default)
def refuse_ctc(b: Builder, *args: Any, **kwargs: Any) -> Any:
    """The loss of connectionist temporal classification belongs to training."""
    raise LoweringError("ctc_loss: a loss for training; leave it out of the model's forward")
