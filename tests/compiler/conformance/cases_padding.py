"""Padding in all modes, with negative widths that crop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from table import FLOATS, Sample, TensorMaker, call, case

aten = torch.ops.aten
ALL = (*FLOATS, torch.int64, torch.bool)


def constant(t: TensorMaker) -> Iterator[Sample]:
    for pad in ([1, 2], [0, 0], [-1, 2], [1, -2, 3, 0], [-1, -1, -1, 0], [0, 1, 0, 0, 2, 0]):
        yield call(t(2, 3, 4), pad)
        yield call(t(2, 3, 4), pad, 1)
    yield call(t(2, 3, 4), [1, 1], 2.5)
    yield call(t(0, 3), [1, 1, 2, 0], 1)
    yield call(t(), [])
    if t.dtype.is_floating_point:
        yield call(t(2, 3), [1, 1], -float("inf"))


case(aten.constant_pad_nd.default, samples=constant, dtypes=ALL)


def border(rank: int, negative: bool = True) -> Any:
    def samples(t: TensorMaker) -> Iterator[Sample]:
        shape = (5, 6, 4)[:rank]
        pads = [[1, 2, 3, 0, 2, 1], [0, 0, 0, 0, 0, 0], [3, 3, 1, 2, 0, 4]]
        if negative:
            pads += [[-1, 2, 0, -1, 1, -2], [-1, -1, 2, -2, 0, 0], [2, -1, -2, 1, -1, 3]]
        for pad in pads:
            yield call(t(2, 3, *shape), pad[: 2 * rank])
            yield call(t(3, *shape), pad[: 2 * rank])

    return samples


for rank, (reflection, replication) in enumerate(
    (
        (aten.reflection_pad1d.default, aten.replication_pad1d.default),
        (aten.reflection_pad2d.default, aten.replication_pad2d.default),
        (aten.reflection_pad3d.default, aten.replication_pad3d.default),
    ),
    start=1,
):
    case(reflection, samples=border(rank), dtypes=FLOATS)
    case(replication, samples=border(rank), dtypes=FLOATS)


def circular(t: TensorMaker) -> Iterator[Sample]:
    for rank in (1, 2, 3):
        yield from border(rank)(t)


case(aten._pad_circular.default, samples=circular)


def modes(t: TensorMaker) -> Iterator[Sample]:
    yield call(t(2, 3, 4), [1, 2])
    yield call(t(2, 3, 4), [1, -2, 0, 1], "constant", 3)
    for mode in ("reflect", "replicate", "circular"):
        yield call(t(2, 3, 5), [1, 2], mode)
        yield call(t(2, 3, 5, 6), [1, 2, 3, 0], mode)
        yield call(t(2, 3, 5, 6, 4), [1, 2, 3, 0, 1, 1], mode)
        yield call(t(3, 5), [4, 4], mode)


case(aten.pad.default, samples=modes)
