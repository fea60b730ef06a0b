"""Losses: of classifiers, of shares and probabilities, of numbers."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.reductions import accumulated
from torch2mlx.compiler.lowering.registry import LoweringError, lowering
from torch2mlx.compiler.lowering.types import is_floating, promote
from torch2mlx.compiler.runtime import losses, reductions

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
    function = (None, mx.mean, mx.sum)[reduction]
    return values if function is None else accumulated(b, values, function, None, False)


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


@lowering(aten.mse_loss.default)
def lower_mse_loss(b: Builder, x: Value, target: Value, reduction: int = 1) -> Any:
    """mse_loss(Tensor self, Tensor target, int reduction=Mean)."""
    x, target = promote(b, x, target)
    return _reduced(b, b.call(mx.square, b.call(mx.subtract, x, target)), reduction)


@lowering(aten.l1_loss.default)
def lower_l1_loss(b: Builder, x: Value, target: Value, reduction: int = 1) -> Any:
    """l1_loss(Tensor self, Tensor target, int reduction=Mean)."""
    x, target = promote(b, x, target)
    return _reduced(b, b.call(mx.abs, b.call(mx.subtract, x, target)), reduction)


@lowering(aten.smooth_l1_loss.default)
def lower_smooth_l1_loss(
    b: Builder, x: Value, target: Value, reduction: int = 1, beta: float = 1.0
) -> Any:
    """smooth_l1_loss(Tensor self, Tensor target, int reduction=Mean, float beta=1.0)."""
    if beta == 0:
        return lower_l1_loss(b, x, target, reduction)
    x, target = promote(b, x, target)
    return _reduced(b, b.call(reductions.huber_loss, x, target, beta, 1 / beta), reduction)


@lowering(aten.huber_loss.default)
def lower_huber_loss(
    b: Builder, x: Value, target: Value, reduction: int = 1, delta: float = 1.0
) -> Any:
    """huber_loss(Tensor self, Tensor target, int reduction=Mean, float delta=1.0)."""
    x, target = promote(b, x, target)
    return _reduced(b, b.call(reductions.huber_loss, x, target, delta, 1.0), reduction)


def _require_signed(name: str, *values: Value) -> None:
    if any("uint" in str(value.dtype) for value in values):
        raise LoweringError(f"{name}: an unsigned type holds no target of -1")


@lowering(aten.soft_margin_loss.default)
def lower_soft_margin_loss(b: Builder, x: Value, target: Value, reduction: int = 1) -> Any:
    """soft_margin_loss(Tensor self, Tensor target, int reduction=Mean)."""
    x, target = promote(b, x, target)
    return _reduced(b, b.call(losses.soft_margin_loss, x, target), reduction)


@lowering(aten.margin_ranking_loss.default)
def lower_margin_ranking_loss(
    b: Builder, x: Value, y: Value, target: Value, margin: float = 0.0, reduction: int = 1
) -> Any:
    """margin_ranking_loss(input1, input2, target, margin, reduction)."""
    _require_signed("margin_ranking_loss", x, y, target)
    x, y, target = promote(b, x, y, target)
    return _reduced(b, b.call(losses.margin_ranking_loss, x, y, target, margin), reduction)


@lowering(aten.hinge_embedding_loss.default)
def lower_hinge_embedding_loss(
    b: Builder, x: Value, target: Value, margin: float = 1.0, reduction: int = 1
) -> Any:
    """hinge_embedding_loss(Tensor self, Tensor target, float margin=1, int reduction=Mean)."""
    return _reduced(b, b.call(losses.hinge_embedding_loss, x, target, margin), reduction)


@lowering(aten.poisson_nll_loss.default)
def lower_poisson_nll_loss(
    b: Builder, x: Value, target: Value, log_input: bool, full: bool, eps: float, reduction: int
) -> Any:
    """poisson_nll_loss(input, target, log_input, full, eps, reduction)."""
    x, target = promote(b, x, target)
    return _reduced(b, b.call(losses.poisson_nll_loss, x, target, log_input, full, eps), reduction)


@lowering(aten.cosine_embedding_loss.default)
def lower_cosine_embedding_loss(
    b: Builder, x: Value, y: Value, target: Value, margin: float = 0.0, reduction: int = 1
) -> Any:
    """cosine_embedding_loss(input1, input2, target, margin, reduction)."""
    _require_signed("cosine_embedding_loss", target)
    return _reduced(b, b.call(losses.cosine_embedding_loss, x, y, target, margin), reduction)
