"""Normalisation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from table import FLOATS, Sample, TensorMaker, call, case, refused

aten = torch.ops.aten


def batch(*tail: Any, stats: bool = True) -> Any:
    """Samples (x, weight, bias[, mean, variance], *tail) of 0 to 3 spatial axes."""

    def samples(t: TensorMaker) -> Iterator[Sample]:
        statistics = (t(4), t(4, low=0.1, high=3)) if stats else ()
        for spatial in ((), (5,), (5, 6), (3, 4, 5)):
            for affine in ((t(4), t(4)), (None, None), (t(4), None)):
                yield call(t(3, 4, *spatial), *affine, *statistics, *tail)

    return samples


TRAINING = refused("updates running statistics", lambda s: s.args[3] is not None and s.args[5])

case(
    aten.batch_norm.default,
    opinfo=("nn.functional.batch_norm",),
    samples=batch(False, 0.1, 1e-3, True),
    dtypes=FLOATS,
    fails=[TRAINING],
)
case(
    aten._native_batch_norm_legit_no_training.default,
    samples=batch(0.1, 1e-3),
)
case(
    aten._native_batch_norm_legit.no_stats,
    samples=batch(True, 0.1, 1e-3, stats=False),
)
case(
    aten._native_batch_norm_legit_functional.default,
    samples=lambda t: [*batch(True, 0.3, 1e-3)(t), *batch(False, 0.3, 1e-3)(t)],
)
case(
    aten.native_batch_norm.default,
    samples=batch(False, 0.1, 1e-3),
    fails=[TRAINING],
)


def instance(t: TensorMaker) -> Iterator[Sample]:
    for spatial in ((5,), (5, 6), (3, 4, 5)):
        for affine in ((t(4), t(4)), (None, None)):
            x = t(3, 4, *spatial)
            yield call(x, *affine, None, None, True, 0.1, 1e-3, False)
            yield call(x, *affine, t(4), t(4, low=0.1, high=3), False, 0.1, 1e-3, False)


case(
    aten.instance_norm.default,
    samples=instance,
    dtypes=FLOATS,
    fails=[TRAINING],
)


def layer(*tail: Any, affine: bool = True) -> Any:
    def samples(t: TensorMaker) -> Iterator[Sample]:
        for shape in ((6,), (5, 6), (3, 5, 6)):
            x = t(2, 3, 5, 6)
            yield call(x, list(shape), *((t(*shape), t(*shape)) if affine else ()), *tail)
            yield call(x, list(shape), *((t(*shape), None) if affine else ()), *tail)
            yield call(x * 1e-3, list(shape), *((None, None) if affine else ()), *tail)

    return samples


case(
    aten.layer_norm.default,
    samples=layer(1e-3),
    dtypes=FLOATS,
)
case(
    aten.native_layer_norm.default,
    samples=layer(1e-3),
)


def root(*tail: Any) -> Any:
    def samples(t: TensorMaker) -> Iterator[Sample]:
        for shape in ((6,), (5, 6)):
            for weight in (None, t(*shape)):
                yield call(t(2, 5, 6), list(shape), weight, *tail)
                yield call(t(2, 5, 6) * 1e-4, list(shape), weight, None)

    return samples


case(
    aten.rms_norm.default,
    samples=root(1e-2),
    dtypes=FLOATS,
    fails=[refused("complex numbers", dtypes=(torch.complex64,))],
)
case(aten._fused_rms_norm.default, samples=root(1e-2))


def group(t: TensorMaker) -> Iterator[Sample]:
    for spatial in ((), (5,), (5, 6), (2, 3, 4)):
        for groups in (1, 2, 6):
            yield call(t(2, 6, *spatial), groups, t(6), t(6), 1e-3)
            yield call(t(2, 6, *spatial), groups)


case(aten.group_norm.default, samples=group, dtypes=FLOATS)
case(
    aten.native_group_norm.default,
    samples=lambda t: [
        call(t(2, 6, 4, 5), t(6), t(6), 2, 6, 20, 3, 1e-3),
        call(t(2, 6, 4, 5), None, None, 2, 6, 20, 2, 1e-3),
    ],
)
case(
    aten._weight_norm.default,
    aten._weight_norm_interface.default,
    samples=lambda t: [call(t(4, 3, 2), t(4, 1, 1), 0), call(t(4, 3, 2), t(1, 1, 2), 2)],
)
case(
    aten.norm_except_dim.default,
    samples=lambda t: [
        call(t(4, 3, 2)),
        call(t(4, 3, 2), 2, 2),
        call(t(4, 3), 2, -1),
        call(t(4, 3), 1, 0),
    ],
    fails=[refused("only the 2-norm", lambda s: s.get(1, "pow", 2) != 2)],
)
