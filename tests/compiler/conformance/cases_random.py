"""Random operators are compared by shape, type, mean and spread."""

from __future__ import annotations

import torch
from table import FLOATS, call, case, refused

aten = torch.ops.aten
MANY = [40, 50]
COMPLEX = (torch.complex64,)
UNIFORM = [refused("random complex numbers", dtypes=COMPLEX)]

case(
    aten.rand.default,
    aten.randn.default,
    samples=lambda t: [call(MANY, dtype=t.dtype), call([], dtype=t.dtype), call([0, 2])],
    dtypes=FLOATS,
    compare="statistics",
    fails=UNIFORM,
)
case(
    aten.rand_like.default,
    aten.randn_like.default,
    aten.uniform.default,
    aten.normal_functional.default,
    samples=lambda t: [call(t(*MANY)), call(t())],
    dtypes=FLOATS,
    compare="statistics",
    fails=UNIFORM,
)
case(
    aten.normal.float_float,
    samples=lambda t: [call(0.5, 2.0, MANY)],
    compare="statistics",
)
case(
    aten.normal.Tensor_float,
    samples=lambda t: [call(t(1, 50) * 0, 2.0), call(t(*MANY) * 0 + 1)],
    compare="statistics",
)
case(
    aten.normal.float_Tensor,
    samples=lambda t: [call(1.0, t(*MANY) * 0 + 2)],
    compare="statistics",
)
case(
    aten.normal.Tensor_Tensor,
    samples=lambda t: [call(t(*MANY) * 0 + 1, t(*MANY) * 0 + 2)],
    compare="statistics",
)
case(aten.randint.default, samples=lambda t: [call(9, MANY)], compare="statistics")
case(aten.randint.low, samples=lambda t: [call(-3, 9, MANY)], compare="statistics")
case(aten.randint_like.default, samples=lambda t: [call(t(*MANY), 9)], compare="statistics")
case(aten.randint_like.low_dtype, samples=lambda t: [call(t(*MANY), 2, 9)], compare="statistics")
case(aten.randperm.default, samples=lambda t: [call(200), call(0)], compare="statistics")
case(
    aten.bernoulli.default,
    samples=lambda t: [call(t(*MANY) * 0 + 0.3)],
    compare="statistics",
)
case(aten.bernoulli.p, samples=lambda t: [call(t(*MANY), 0.3)], compare="statistics")
case(
    aten.dropout.default,
    samples=lambda t: [
        call(t(*MANY), 0.4, True),
        call(t(*MANY), 0.4, False),
        call(t(3), 1.0, True),
    ],
    compare="statistics",
)
case(
    aten.native_dropout.default,
    samples=lambda t: [call(t(*MANY), 0.4, True), call(t(*MANY), 0.4, False)],
    compare="statistics",
)
case(
    aten.alpha_dropout.default,
    aten.feature_dropout.default,
    aten.feature_alpha_dropout.default,
    samples=lambda t: [call(t(2, 3, 4), 0.4, False), call(t(2, 3, 4), 0.4, True)],
    fails=[refused("training", when=lambda s: s.get(2, "train"))],
)
