"""Orders: ties, NaN, both directions, every dimension, empty and 0-d tensors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from table import FLOATS, Sample, TensorMaker, call, case, refused

aten = torch.ops.aten
ALL = (*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool)
OPEN = "torch promises no order of equal elements; test_ties.py checks what it does promise"


def tied(sample: Sample) -> bool:
    """Whether an axis has equal elements (several NaN count as equal)."""
    x = sample.args[0]
    dim = next((a for a in sample.args[1:] if isinstance(a, int)), -1)
    dim = sample.kwargs.get("dim", dim)
    return has_ties(x, dim)


def tied_along_second(sample: Sample) -> bool:
    """As tied, where the dimension comes after k."""
    return has_ties(sample.args[0], sample.get(2, "dim", -1))


def has_ties(x: torch.Tensor, dim: int) -> bool:
    if x.ndim == 0 or x.numel() == 0:
        return False
    x = x.float().nan_to_num(nan=3e38).sort(dim).values
    return bool((x.diff(dim=dim) == 0).any())


def many_ties(sample: Sample) -> bool:
    """Torch's CPU kernel keeps equal elements in order on short axes only."""
    return sample.args[0].numel() > 64 and tied(sample)


def tensors(t: TensorMaker) -> Iterator[torch.Tensor]:
    yield t(3, 4, 2)
    yield t(5)
    yield t(7, low=0, high=3).round() if t.dtype.is_floating_point else t(7, low=0, high=3)
    if t.dtype.is_floating_point:
        nan, inf = float("nan"), float("inf")
        yield t.of([1.0, nan, -inf, 2.0, nan, inf, 0.0, -0.0])
    yield t()
    yield t(0)
    yield t(2, 0, 3)


def orders(t: TensorMaker) -> Iterator[Sample]:
    for x in tensors(t):
        for dim in {-1, 0, -x.ndim, x.ndim - 1} if x.ndim else {-1}:
            for descending in (False, True):
                yield call(x, dim, descending)


def stable_orders(t: TensorMaker) -> Iterator[Sample]:
    for sample in orders(t):
        x, dim, descending = sample.args
        yield call(x, stable=True, dim=dim, descending=descending)


case(aten.sort.default, aten.argsort.default, samples=orders, dtypes=ALL, skip=[(OPEN, many_ties)])
case(aten.sort.stable, aten.argsort.stable, samples=stable_orders, dtypes=ALL)
case(aten.msort.default, samples=lambda t: [call(x) for x in tensors(t)], dtypes=ALL)


def selections(t: TensorMaker) -> Iterator[Sample]:
    distinct = torch.randperm(24, generator=t.generator).reshape(2, 3, 4).to(t.dtype)
    for dim in (-1, 0, 1, -3):
        for k in (0, 1, 2):
            for largest in (True, False):
                yield call(distinct, k, dim, largest, True)
    yield call(distinct, 4)
    yield call(t(), 1)
    if t.dtype.is_floating_point:
        yield call(t.of([1.0, float("nan"), -float("inf"), 2.0]), 3)
        yield call(t.of([1.0, float("nan"), -float("inf"), 2.0]), 3, 0, False)


case(
    aten.topk.default,
    samples=selections,
    dtypes=(*FLOATS, torch.int64),
    skip=[(OPEN, tied_along_second)],
)


def ranks(t: TensorMaker) -> Iterator[Sample]:
    distinct = torch.randperm(24, generator=t.generator).reshape(2, 3, 4).to(t.dtype)
    for keepdim in (False, True):
        yield call(distinct, 3, -1, keepdim)
        yield call(distinct, 1, 0, keepdim)
        yield call(t(), 1, 0, keepdim)


case(
    aten.kthvalue.default,
    samples=ranks,
    dtypes=(*FLOATS, torch.int64),
    skip=[(OPEN, tied_along_second)],
)


def middles(t: TensorMaker) -> Iterator[Sample]:
    distinct = torch.randperm(24, generator=t.generator).reshape(2, 3, 4).to(t.dtype)
    for keepdim in (False, True):
        for dim in (0, 1, -1):
            yield call(distinct, dim, keepdim)
        yield call(t(), 0, keepdim)
        if t.dtype.is_floating_point:
            nan = float("nan")
            rows = [[1.0, nan, 2.0, 5.0], [4.0, 3.0, 1.0, 2.0]]
            yield call(t.of(rows), -1, keepdim)
            yield call(t.of([[nan], [1.0]]), 1, keepdim)


case(
    aten.median.dim,
    aten.nanmedian.dim,
    samples=middles,
    dtypes=(*FLOATS, torch.int64),
    skip=[(OPEN, tied)],
)


def whole(t: TensorMaker) -> Iterator[Sample]:
    yield call(t(3, 4))
    yield call(t(5))
    yield call(t())
    if t.dtype.is_floating_point:
        yield call(t.of([1.0, float("nan"), 2.0]))
        yield call(t.of([float("nan")] * 2))
        yield call(t(0))


case(
    aten.median.default,
    aten.nanmedian.default,
    samples=whole,
    dtypes=(*FLOATS, torch.int64),
    fails=[
        refused(
            "the median of no integers is undefined",
            when=lambda s: not s.args[0].numel() and not s.args[0].is_floating_point(),
        )
    ],
)
case(
    aten.mode.default,
    samples=lambda t: (
        [
            call(t.of([[1, 3, 3, 1, 2], [0, 0, 4, 0, 4]]), dim, keepdim)
            for dim in (0, 1, -1)
            for keepdim in (False, True)
        ]
        + [call(t())]
    ),
    dtypes=(*FLOATS, torch.int64),
    skip=[("of many equal elements torch names any index", many_ties)],
)


def searches(t: TensorMaker) -> Iterator[Sample]:
    edges = t(9).sort().values
    values = torch.cat([t(2, 5).flatten(), edges[2:5]])
    for right in (False, True):
        yield call(edges, values, right=right)
        yield call(edges, values.reshape(1, 13), right=right, out_int32=True)
        yield call(t(2, 6).sort(-1).values, t(2, 4), right=right)
        yield call(t(2, 3, 6).sort(-1).values, t(2, 3, 1), right=right)
        yield call(edges, t(), right=right)
        yield call(edges, t(0), right=right)
        yield call(edges[:0], values, right=right)
    yield call(edges, values, side="right")
    yield call(edges, values, side="left")
    shuffled = t(6)
    yield call(shuffled, t(4), sorter=shuffled.argsort())
    if t.dtype.is_floating_point:
        nan, inf = float("nan"), float("inf")
        yield call(t.of([0.0, 1.0, inf]), t.of([nan, inf, -inf, 1.0, 3.0]))
        yield call(t.of([0.0, 1.0, inf]), t.of([nan, inf, -inf, 1.0, 3.0]), right=True)


def buckets(t: TensorMaker) -> Iterator[Sample]:
    for sample in searches(t):
        edges, values = sample.args
        if edges.ndim == 1 and not {"side", "sorter"} & set(sample.kwargs):
            yield call(values, edges, **sample.kwargs)


NUMBERS = (*FLOATS, torch.int64, torch.uint8)
case(aten.searchsorted.Tensor, samples=searches, dtypes=NUMBERS)
case(aten.bucketize.Tensor, samples=buckets, dtypes=NUMBERS)
case(
    aten.searchsorted.Scalar,
    samples=lambda t: [
        call(t(9).sort().values, value, right=right)
        for value in (1, 0.5, 2)
        for right in (False, True)
    ],
    dtypes=NUMBERS,
)
case(
    aten.bucketize.Scalar,
    samples=lambda t: [
        call(value, t(9).sort().values, right=right)
        for value in (1, 0.5, 2)
        for right in (False, True)
    ],
    dtypes=NUMBERS,
)
