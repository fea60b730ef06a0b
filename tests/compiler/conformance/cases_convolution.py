"""Convolutions: every attribute, alone and together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from table import INTEGERS, Sample, TensorMaker, call, case, refused

aten = torch.ops.aten
INTEGER = refused("MLX convolves floating-point numbers only", dtypes=INTEGERS)
COMPLEX = refused("MLX convolves floating-point numbers only", dtypes=(torch.complex64,))
SUMS: dict[torch.dtype, float] = {torch.float32: 8, torch.float16: 2, torch.bfloat16: 2}
ONCE = "both add up in float32, in another order, and round the sum to the type once"

PARTIAL = {**SUMS, torch.float16: 5, torch.bfloat16: 5}
EACH = "torch rounds the partial sum of each place of the kernel to the type, MLX only the whole"


def plain(rank: int) -> Any:
    def samples(t: TensorMaker) -> Iterator[Sample]:
        size = (9, 8, 7)[:rank]
        x, one = t(2, 4, *size), (1,) * rank
        weight = t(6, 4, *(3, 2, 3)[:rank])
        yield call(x, weight)
        yield call(x, weight, t(6))
        yield call(x, weight, t(6), [2, 3, 1][:rank], [1, 2, 1][:rank], [2, 1, 2][:rank])
        yield call(x[0], weight, t(6), [2])
        yield call(x, t(6, 2, *weight.shape[2:]), None, one, [1], one, 2)
        yield call(x, t(8, 1, *weight.shape[2:]), t(8), [2], [1], [1], 4)
        yield call(x[:0], weight, t(6))
        yield call(x, t(5, 4, *one), t(5))

    return samples


def named(rank: int) -> Any:
    def samples(t: TensorMaker) -> Iterator[Sample]:
        x = t(2, 4, *(9, 8, 7)[:rank])
        for kernel in (3, 4):
            weight = t(6, 4, *(kernel, 2, 3)[:rank])
            for padding in ("same", "valid"):
                yield call(x, weight, t(6), [1], padding)
            yield call(x, weight, None, [1], "same", [2])
        yield call(x, t(4, 1, *(4, 3, 2)[:rank]), t(4), [1], "same", [1], 4)
        yield call(x, t(4, 2, *(4, 3, 2)[:rank]), t(4), [2], "valid", [1], 2)
        yield call(x[0], weight, t(6), [1], "same")

    return samples


def transposed(rank: int) -> Any:
    def samples(t: TensorMaker) -> Iterator[Sample]:
        x = t(2, 4, *(5, 4, 3)[:rank])
        weight = t(4, 6, *(3, 2, 3)[:rank])
        one, two = [1] * rank, [2] * rank
        yield call(x, weight)
        yield call(x, weight, t(6), two)
        yield call(x, weight, t(6), two, one)
        yield call(x, weight, t(6), two, one, one)
        yield call(x, weight, t(6), [3, 2, 2][:rank], one, [2, 1, 0][:rank])
        yield call(x, weight, t(6), two, one, one, 1, two)
        yield call(x, t(4, 3, *weight.shape[2:]), t(6), two, one, one, 2)
        yield call(x, t(4, 1, *weight.shape[2:]), t(4), two, one, one, 4)
        yield call(x, t(4, 6, *one), t(6), two, one)
        yield call(x, t(4, 3, *one), t(6), [3] * rank, one, one, 2)
        yield call(x[0], weight, None, two)

    return samples


def general(t: TensorMaker) -> Iterator[Sample]:
    x, weight = t(2, 4, 7, 6), t(6, 2, 3, 2)
    yield call(x, weight, t(6), [2, 1], [1, 0], [1, 2], False, [0, 0], 2)
    yield call(x, t(4, 3, 3, 2), t(6), [2, 1], [1, 0], [1, 2], True, [1, 0], 2)
    yield call(t(2, 4, 7), t(6, 4, 3), None, [2], [1], [1], False, [0], 1)


for rank, ops in enumerate(
    (
        (aten.conv1d, aten.conv_transpose1d.default),
        (aten.conv2d, aten.conv_transpose2d.input),
        (aten.conv3d, aten.conv_transpose3d.input),
    ),
    start=1,
):
    shared = {
        "dtypes": (torch.float32, torch.float16, torch.bfloat16),
        "roundings": SUMS,
        "reason": ONCE,
        "fails": [INTEGER, COMPLEX],
    }
    case(ops[0].default, samples=plain(rank), **shared)
    case(ops[0].padding, opinfo=(f"nn.functional.conv{rank}d",), samples=named(rank), **shared)
    case(
        ops[1],
        opinfo=(f"nn.functional.conv_transpose{rank}d",),
        samples=transposed(rank),
        **{**shared, "roundings": PARTIAL, "reason": EACH},
    )
case(
    aten.convolution.default,
    samples=general,
    roundings=SUMS,
    reason=ONCE,
    fails=[INTEGER, COMPLEX],
)
