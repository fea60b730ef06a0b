"""Losses of classifiers: (N, C, ...) against (N, ...), or (C,) against a number.

`reduction` is "none", "mean" or "sum".
"""

from __future__ import annotations

import math

import mlx.core as mx

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cosine_embedding_loss",
    "cross_entropy",
    "cross_entropy_of_shares",
    "hinge_embedding_loss",
    "kl_divergence",
    "margin_ranking_loss",
    "nll_loss",
    "poisson_nll_loss",
    "soft_margin_loss",
]


def class_axis(scores: mx.array) -> int:
    """Where the classes are."""
    return 0 if scores.ndim == 1 else 1


def reduced(losses: mx.array, weights: mx.array, reduction: str) -> mx.array:
    """Losses as they are, their sum, or their sum over that of the weights."""
    if reduction == "none":
        return losses
    total = mx.sum(losses)
    return total if reduction == "sum" else total / mx.sum(weights)


def target_weights(
    scores: mx.array, target: mx.array, weight: mx.array | None, ignore_index: int
) -> tuple[mx.array, mx.array]:
    """Targets with 0 for the ignored ones, and the weight of each, 0 for the ignored ones."""
    counts = target != ignore_index
    target = mx.where(counts, target, 0)
    weights = mx.ones(target.shape, scores.dtype) if weight is None else weight[target]
    return target, mx.where(counts, weights, mx.zeros((), weights.dtype))


def nll_loss(
    log_shares: mx.array,
    target: mx.array,
    weight: mx.array | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
) -> tuple[mx.array, mx.array]:
    """The negative log-likelihood of the targets, and the sum of their weights."""
    axis = class_axis(log_shares)
    target, weights = target_weights(log_shares, target, weight, ignore_index)
    chosen = mx.take_along_axis(log_shares, mx.expand_dims(target, axis), axis=axis)
    losses = -mx.squeeze(chosen, axis) * weights
    return reduced(losses, weights, reduction), mx.sum(weights)


def cross_entropy(
    scores: mx.array,
    target: mx.array,
    weight: mx.array | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> mx.array:
    """Softmax and negative log-likelihood of class numbers."""
    axis = class_axis(scores)
    log_shares = scores - mx.logsumexp(scores, axis=axis, keepdims=True)
    loss, _ = nll_loss(log_shares, target, weight, reduction, ignore_index)
    if label_smoothing == 0:
        return loss
    spread = log_shares if weight is None else log_shares * along(weight, scores)
    counts = target != ignore_index
    losses = mx.where(counts, -mx.sum(spread, axis=axis), 0)
    _, weights = target_weights(scores, target, weight, ignore_index)
    smooth = reduced(losses, weights, reduction) / scores.shape[axis]
    return (1 - label_smoothing) * loss + label_smoothing * smooth


def cross_entropy_of_shares(
    scores: mx.array,
    target: mx.array,
    weight: mx.array | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> mx.array:
    """Softmax and cross entropy with a share for each class."""
    axis = class_axis(scores)
    log_shares = scores - mx.logsumexp(scores, axis=axis, keepdims=True)
    if label_smoothing > 0:
        target = target * (1 - label_smoothing) + label_smoothing / scores.shape[axis]
    if weight is not None:
        log_shares = log_shares * along(weight, scores)
    losses = -mx.sum(log_shares * target, axis=axis)
    return reduced(losses, mx.ones_like(losses), reduction)


def along(weight: mx.array, scores: mx.array) -> mx.array:
    """One number a class, in the shape of the scores."""
    return weight.reshape(-1, *(1,) * (scores.ndim - class_axis(scores) - 1))


def binary_cross_entropy(x: mx.array, target: mx.array) -> mx.array:
    """Element by element; a logarithm is at least -100."""
    yes = mx.maximum(mx.log(x), -100)
    no = mx.maximum(mx.log1p(-x), -100)
    return (target - 1) * no - target * yes


def binary_cross_entropy_with_logits(
    x: mx.array, target: mx.array, pos_weight: mx.array | None = None
) -> mx.array:
    """Element by element, without the overflow of exp; positives may count more."""
    log_sigmoid = mx.minimum(x, 0) - mx.log1p(mx.exp(-mx.abs(x)))
    if pos_weight is None:
        return (1 - target) * x - log_sigmoid
    return (1 - target) * x - ((pos_weight - 1) * target + 1) * log_sigmoid


def kl_divergence(x: mx.array, target: mx.array, log_target: bool) -> mx.array:
    """Element by element, of log shares `x` from shares, or from their logarithms."""
    if log_target:
        return mx.exp(target) * (target - x)
    return mx.where(target == 0, 0, target * mx.log(target)) - target * x


def soft_margin_loss(x: mx.array, target: mx.array) -> mx.array:
    """log(1 + exp(-target x)) for targets of 1 and -1."""
    return mx.log1p(mx.exp(-target * x))


def margin_ranking_loss(
    x: mx.array, y: mx.array, target: mx.array, margin: float = 0.0
) -> mx.array:
    """How far x - y falls short of the margin, in the direction of the target."""
    return mx.maximum(margin - target * (x - y), 0)


def hinge_embedding_loss(x: mx.array, target: mx.array, margin: float = 1.0) -> mx.array:
    """X where the target is 1, what it lacks of the margin where it is -1."""
    short = mx.maximum(margin - x, 0)
    return mx.where(target != 1, short, 0) + mx.where(target != -1, x, 0)


def poisson_nll_loss(
    x: mx.array, target: mx.array, log_input: bool, full: bool, eps: float
) -> mx.array:
    """The negative log-likelihood of counts; `full` adds Stirling's term for log(target!)."""
    loss = mx.exp(x) - target * x if log_input else x - target * mx.log(x + eps)
    if full:
        stirling = target * mx.log(target) - target + 0.5 * mx.log(2 * math.pi * target)
        loss = loss + mx.where(target <= 1, 0, stirling)
    return loss


def cosine_embedding_loss(
    x: mx.array, y: mx.array, target: mx.array, margin: float = 0.0
) -> mx.array:
    """1 - cos of pairs whose target is 1, cos beyond the margin where it is -1."""
    # The same small number that PyTorch adds to both squared lengths.
    product = (mx.sum(x * x, -1) + 1e-12) * (mx.sum(y * y, -1) + 1e-12)
    cosine = mx.sum(x * y, -1) * mx.rsqrt(product)
    apart = mx.where(target == -1, mx.maximum(cosine - margin, 0), 0)
    return mx.where(target == 1, 1 - cosine, apart)
