"""Losses of classifiers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from table import Sample, TensorMaker, call, case, refused

aten = torch.ops.aten


def classes(*shape: int) -> torch.Tensor:
    return (torch.arange(torch.Size(shape).numel()) * 7 % 5).reshape(shape)


def likelihood(shapes: tuple[tuple[int, ...], ...], tail: tuple[Any, ...] = ()) -> Any:
    def samples(t: TensorMaker) -> Iterator[Sample]:
        for batch, *places in shapes:
            x, target = t(batch, 5, *places), classes(batch, *places)
            for weight in (None, t(5, low=0.1)):
                for reduction in (0, 1, 2):
                    yield call(x, target, weight, reduction, -100, *tail)
                    yield call(x, target, weight, reduction, 2, *tail)

    return samples


FLAT, IMAGE = ((4,),), ((3, 2, 3),)
for suffix in ("", "_forward"):
    case(getattr(aten, f"nll_loss{suffix}").default, samples=likelihood(FLAT))
    case(getattr(aten, f"nll_loss2d{suffix}").default, samples=likelihood(IMAGE))
case(aten.nll_loss_nd.default, samples=likelihood((*FLAT, *IMAGE, (3, 4))))


def entropy(t: TensorMaker) -> Iterator[Sample]:
    for smoothing in (0.0, 0.2):
        yield from likelihood((*FLAT, (3, 4)), (smoothing,))(t)
        for weight in (None, t(5, low=0.1)):
            for reduction in (0, 1, 2):
                x, shares = t(4, 5, 3), t(4, 5, 3).softmax(1)
                yield call(x, shares, weight, reduction, -100, smoothing)
                yield call(x[0, :, 0], shares[0, :, 0], weight, reduction, -100, smoothing)
                yield call(x[0, :, 0], classes(4)[1], weight, reduction, -100, smoothing)


case(aten.cross_entropy_loss.default, opinfo=("nn.functional.cross_entropy",), samples=entropy)


def alignment(as_tensors: bool) -> Any:
    def samples(t: TensorMaker) -> Iterator[Sample]:
        lengths: Any = ([5], [2])
        if as_tensors:
            lengths = tuple(torch.tensor(n) for n in lengths)
        yield call(t(5, 1, 4).log_softmax(-1), torch.tensor([[1, 2]]), *lengths)

    return samples


TRAINING = refused("a loss for training")
case(aten.ctc_loss.IntList, aten._ctc_loss.default, samples=alignment(False), fails=[TRAINING])
case(aten.ctc_loss.Tensor, samples=alignment(True), fails=[TRAINING])


def probabilities(t: TensorMaker) -> Iterator[Sample]:
    for weight in (None, t(3, 4, low=0)):
        for reduction in (0, 1, 2):
            yield call(t(3, 4, low=0, high=1), t(3, 4, low=0, high=1), weight, reduction)
    yield call(t.of([0.0, 1.0, 0.0, 1.0]), t.of([0.0, 1.0, 1.0, 0.0]), None, 0)


def logits(t: TensorMaker) -> Iterator[Sample]:
    for weight in (None, t(4, low=0)):
        for positive in (None, t(4, low=0)):
            for reduction in (0, 1, 2):
                target = t(3, 4, low=0, high=1)
                yield call(t(3, 4) * 40, target, weight, positive, reduction)


def divergence(t: TensorMaker) -> Iterator[Sample]:
    for reduction in (0, 1, 2):
        x, target = t(3, 4).log_softmax(1), t(3, 4).softmax(1)
        yield call(x, target, reduction)
        yield call(x, target.log(), reduction, log_target=True)
    yield call(x, target.round(), 0)


case(aten.binary_cross_entropy.default, samples=probabilities)
case(aten.binary_cross_entropy_with_logits.default, samples=logits)
case(aten.kl_div.default, samples=divergence)

UNSIGNED = refused("targets of -1 in a type without negative numbers", dtypes=(torch.uint8,))
case(
    aten.soft_margin_loss.default,
    samples=lambda t: [call(t(3, 4), t(3, 4).sign(), r) for r in (0, 1, 2)],
)
case(
    aten.margin_ranking_loss.default,
    samples=lambda t: [call(t(6), t(6), t(6).sign(), 0.3, r) for r in (0, 1, 2)],
    fails=[UNSIGNED],
)
case(
    aten.hinge_embedding_loss.default,
    samples=lambda t: [call(t(6), t(6).sign(), 0.7, r) for r in (0, 1, 2)],
)
case(
    aten.cosine_embedding_loss.default,
    samples=lambda t: [call(t(6, 4), t(6, 4), t(6).sign(), 0.1, r) for r in (0, 1, 2)],
    fails=[UNSIGNED],
)
case(
    aten.poisson_nll_loss.default,
    samples=lambda t: [
        call(t(6, low=0.1), t(6, low=0, high=5).round(), log_input, full, 1e-8, r)
        for log_input in (False, True)
        for full in (False, True)
        for r in (0, 1, 2)
    ],
)
