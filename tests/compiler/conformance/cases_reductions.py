"""Reductions and cumulative operators: what OpInfo does not reach, and what MLX cannot do."""

from __future__ import annotations

import torch
from table import FLOATS, Sample, TensorMaker, call, case, refused

aten = torch.ops.aten
COMPLEX = (torch.complex64,)
LOGICAL = (torch.float32, torch.int64, torch.bool)

case(
    aten.var.default,
    aten.var.dim,
    aten.var.correction,
    aten.std.default,
    aten.std.dim,
    aten.std.correction,
    aten.var_mean.default,
    aten.var_mean.dim,
    aten.var_mean.correction,
    aten.std_mean.default,
    aten.std_mean.dim,
    aten.std_mean.correction,
    fails=[refused("the spread of complex numbers", dtypes=COMPLEX)],
)
case(
    aten.logsumexp.default,
    aten.logcumsumexp.default,
    fails=[refused("MLX lacks the function of complex numbers", dtypes=COMPLEX)],
)
case(
    aten.special_logsumexp.default,
    samples=lambda t: [call(t(2, 3), [1]), call(t(2, 3), [0, 1], True), call(t(), [0])],
    dtypes=FLOATS,
)
case(aten._logcumsumexp.default, samples=lambda t: [call(t(2, 3), 1)], dtypes=FLOATS)
case(
    aten._softmax.default,
    aten._log_softmax.default,
    samples=lambda t: [call(t(2, 3), 1, False), call(t(), 0, False), call(t(0, 3), -1, False)],
    dtypes=FLOATS,
)
case(
    aten.linalg_norm.default,
    fails=[
        refused(
            "ord of a matrix",
            when=lambda s: (
                s.get(1, "ord") is not None
                and (
                    (s.get(2, "dim") is None and s.args[0].ndim == 2)
                    or (isinstance(s.get(2, "dim"), list) and len(s.get(2, "dim")) == 2)
                )
            ),
        )
    ],
)


def orders(t: TensorMaker) -> list[Sample]:
    return [call(t(2, 3), p) for p in (0, 1, 2, 3, float("inf"), float("-inf"), 0.5)]


case(aten.norm.Scalar, samples=orders, dtypes=FLOATS)
case(
    aten.norm.ScalarOpt_dim,
    samples=lambda t: [call(t(2, 3), p, [1], keep) for p in (1, None) for keep in (True, False)],
    dtypes=FLOATS,
)
case(
    aten.norm.ScalarOpt_dtype,
    samples=lambda t: [call(t(2, 3), 2, dtype=torch.float32)],
)
case(
    aten.norm.ScalarOpt_dim_dtype,
    samples=lambda t: [call(t(2, 3), 2, [0], True, dtype=torch.float32)],
)
case(
    aten._is_all_true.default,
    aten._is_any_true.default,
    samples=lambda t: [call(t(2, 3)), call(t(0)), call(t.of([True, True]))],
    dtypes=(torch.bool,),
)
case(
    aten.all.dims,
    aten.any.dims,
    samples=lambda t: [
        call(t(2, 3, 2), dims, keep) for dims in ([0, 2], [1], None) for keep in (True, False)
    ],
    dtypes=LOGICAL,
)
case(
    aten.count_nonzero.dim_IntList,
    samples=lambda t: [call(t(2, 3), [0]), call(t(2, 3), [0, 1])],
    dtypes=LOGICAL,
)


def ties(t: TensorMaker) -> list[Sample]:
    nan = float("nan")
    return [
        call(t.of([[1.0, 3, 3, 0], [2, 2, 2, 2]]), 1),
        call(t.of([[1.0, nan, 3, nan], [2, 2, 2, 2]]), 1),
        call(t(3, 2, 2), -2),
        call(t(), 0),
    ]


case(
    aten.max.dim,
    aten.min.dim,
    aten.argmax.default,
    aten.argmin.default,
    aten.cummax.default,
    aten.cummin.default,
    samples=ties,
    dtypes=FLOATS,
)
