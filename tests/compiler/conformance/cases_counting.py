"""Membership and histograms, at the edges of bins and outside of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from table import FLOATS, Sample, TensorMaker, call, case

aten = torch.ops.aten


def members(t: TensorMaker) -> Iterator[Sample]:
    x = t(3, 4)
    for invert in (False, True):
        yield call(x, x[1:, :2].clone(), invert=invert)
        yield call(x, t(0), invert=invert)
        yield call(x[0, 0].clone(), x, invert=invert)
        yield call(x, x[0, 0].clone(), assume_unique=False, invert=invert)
    yield call(t(0, 2), x)


case(aten.isin.Tensor_Tensor, samples=members, dtypes=(*FLOATS, torch.int64, torch.uint8))
case(
    aten.isin.Tensor_Scalar,
    samples=lambda t: [call(t.of([1, 2, 3]), 2), call(t.of([1, 2, 3]), 2, invert=True)],
    dtypes=(torch.float32, torch.int64),
)


def histograms(t: TensorMaker) -> Iterator[Sample]:
    yield call(t(50), 7)
    yield call(t(5, 10), 4, -1, 1)
    yield call(t(50), 3, 1, 1)
    yield call(torch.ones_like(t(4)), 5)
    yield call(t.of([0, 1, 2, 3, 4, 4, 9, -1]), 4, 0, 4)
    yield call(t.of([0, 1, 2, 2, 7]), 8, 0, 7)
    yield call(t(0), 4)
    yield call(t.of([0.5, float("nan"), 3.0]), 4, 0, 4)


case(aten.histc.default, samples=histograms)
