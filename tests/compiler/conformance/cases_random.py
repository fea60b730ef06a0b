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
    aten.rand.generator,
    aten.randn.generator,
    samples=lambda t: [call(MANY, generator=None, dtype=t.dtype), call([0, 2], generator=None)],
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
    aten.feature_dropout.default,
    samples=lambda t: [call(t(60, 50, 3), 0.4, train) for train in (True, False)],
    compare="statistics",
)
case(
    aten.alpha_dropout.default,
    samples=lambda t: [
        call(t(*MANY), 0.4, True),
        call(t(*MANY), 0.4, False),
        call(t(200), 1.0, True),
    ],
    compare="statistics",
)
case(
    aten.feature_alpha_dropout.default,
    samples=lambda t: [call(t(60, 50, 3), 0.4, train) for train in (True, False)],
    compare="statistics",
)
case(
    aten.multinomial.default,
    samples=lambda t: [
        call(t.of([[0.1, 0.0, 0.6, 0.3]] * 500), 1),
        call(t.of([[0.1, 0.0, 0.6, 0.3]] * 500), 3),
        call(t.of([0.1, 0.0, 0.6, 0.3]), 2000, True),
        call(t.of([[1.0, 0.0, 6.0]] * 2), 1000, True),
    ],
    compare="statistics",
)
case(
    aten.exponential.default,
    samples=lambda t: [call(t(*MANY)), call(t(*MANY), 2.5), call(t(0, 3))],
    dtypes=FLOATS,
    compare="statistics",
)
case(
    aten.geometric.default,
    samples=lambda t: [call(t(*MANY), 0.3)],
    compare="statistics",
)
case(
    aten.log_normal.default,
    samples=lambda t: [call(t(*MANY), 0.2, 0.3)],
    compare="statistics",
)
# Without mean and variance: only the shape can be compared.
case(aten.cauchy.default, samples=lambda t: [call(t(*MANY), 0.5, 2.0)], compare="shape")
case(
    aten.poisson.default,
    aten._standard_gamma.default,
    aten._sample_dirichlet.default,
    samples=lambda t: [call(t(2, 3, low=0.1, high=2))],
    compare="statistics",
    fails=[refused("MLX cannot draw them")],
)
case(
    aten.binomial.default,
    samples=lambda t: [call(t(2, 3, low=3, high=4).round(), t(2, 3, low=0.1, high=0.9))],
    compare="statistics",
    fails=[refused("MLX cannot draw them")],
)
