"""Pooling: every attribute, alone and together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from table import FLOATS, INTEGERS, Sample, TensorMaker, call, case, refused

aten = torch.ops.aten
SIZE = (9, 8, 7)
INTEGER = refused("means of integers", dtypes=INTEGERS)


def maximum(rank: int) -> Any:
    def samples(t: TensorMaker) -> Iterator[Sample]:
        x = t(2, 3, *SIZE[:rank])
        kernel, two, one = [3, 2, 3][:rank], [2] * rank, [1] * rank
        for ceil_mode in (False, True):
            yield call(x, kernel, [], [0] * rank, one, ceil_mode)
            yield call(x, kernel, two, one, one, ceil_mode)
            yield call(x, [3] * rank, two, one, two, ceil_mode)
            yield call(x, two, [3] * rank, one, one, ceil_mode)
            yield call(x[0], [2], [2], [1], [1], ceil_mode)
        yield call(x, [2])
        # Ties, NaN, and windows of -inf only.
        yield call((x * 2).round() / 2, kernel, one)
        if x.dtype.is_floating_point:
            yield call(x.masked_fill(x > 1, float("nan")), kernel, two, one)
            yield call(x.masked_fill(x < 1, -float("inf")), kernel, two, one)
            yield call(x * 0 - float("inf"), [4] * rank, two, two, two)

    return samples


def mean(rank: int) -> Any:
    def samples(t: TensorMaker) -> Iterator[Sample]:
        x = t(2, 3, *SIZE[:rank])
        kernel, two, one = [3, 2, 3][:rank], [2] * rank, [1] * rank
        for ceil_mode in (False, True):
            for count_include_pad in (False, True):
                yield call(x, kernel, [], [0] * rank, ceil_mode, count_include_pad)
                yield call(x, kernel, two, one, ceil_mode, count_include_pad)
                yield call(x, [3] * rank, [4] * rank, one, ceil_mode, count_include_pad)
                yield call(x[0], [2], [2], [1], ceil_mode, count_include_pad)
                if rank > 1:
                    yield call(x, kernel, two, one, ceil_mode, count_include_pad, 5)
        yield call(x, [2])
        if rank < 3:  # windows larger than the data, which torch refuses in three dimensions
            yield call(x, [12] * rank, [], [0], True)
        if rank == 2:
            yield call(x, [12] * rank, [], [0], True, True, 5)

    return samples


def adaptive(rank: int) -> Any:
    def samples(t: TensorMaker) -> Iterator[Sample]:
        x = t(2, 3, *SIZE[:rank])
        for size in ([1] * rank, [3, 4, 7], [5, 3, 2], [9, 8, 7], [11, 9, 8], [1, 5, 14]):
            yield call(x, size[:rank])
            yield call(x[0], size[:rank])
        yield call((x * 2).round() / 2, [4] * rank)
        yield call(x.masked_fill(x > 1, float("nan")), [4] * rank)
        yield call(x.masked_fill(x < 1, -float("inf")), [2] * rank)

    return samples


def unpooled(rank: int) -> Any:
    pool = torch.nn.functional.max_pool2d if rank == 2 else torch.nn.functional.max_pool3d
    tail = [] if rank == 2 else [[2] * rank, [0] * rank]

    def samples(t: TensorMaker) -> Iterator[Sample]:
        x = t(2, 3, *SIZE[:rank])
        for data in (x, x[0]):
            values, indices = pool(data, 2, return_indices=True)
            yield call(values, indices, list(SIZE[:rank]), *tail)

    return samples


def fractional(rank: int) -> Any:
    def samples(t: TensorMaker) -> Iterator[Sample]:
        x = t(2, 3, *SIZE[:rank])
        for kernel, size in ([2, 3, 2], [5, 4, 3]), ([3, 2, 3], [4, 1, 2]):
            random = t(2, 3, rank, low=0, high=0.99)
            yield call(x, kernel[:rank], size[:rank], random)
            yield call(x[0], kernel[:rank], size[:rank], random[:1])

    return samples


for rank in (1, 2, 3):
    name = f"nn.functional.max_pool{rank}d"
    plain, indexed = (
        getattr(aten, f"max_pool{rank}d"),
        getattr(aten, f"max_pool{rank}d_with_indices"),
    )
    integers = (torch.int64,) if rank > 1 else ()
    case(plain.default, samples=maximum(rank), dtypes=FLOATS)
    case(indexed.default, opinfo=(name,), samples=maximum(rank), dtypes=(*FLOATS, *integers))
    case(
        getattr(aten, f"avg_pool{rank}d").default,
        samples=mean(rank),
        dtypes=FLOATS if rank < 3 else (torch.float32,),  # torch has no avg_pool3d of halves
        fails=[INTEGER],
    )
    for kind in ("avg", "max"):
        packet = getattr(aten, f"adaptive_{kind}_pool{rank}d")
        case(packet.default, samples=adaptive(rank), dtypes=FLOATS)
    if rank > 1:
        case(
            getattr(aten, f"_adaptive_avg_pool{rank}d").default,
            samples=adaptive(rank),
            dtypes=FLOATS,
        )
        case(getattr(aten, f"max_unpool{rank}d").default, samples=unpooled(rank), dtypes=FLOATS)
        case(getattr(aten, f"fractional_max_pool{rank}d").default, samples=fractional(rank))
