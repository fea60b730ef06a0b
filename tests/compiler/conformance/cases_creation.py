"""Creation, copies and symbolic numbers."""

from __future__ import annotations

import operator

import torch
from table import DTYPES, FLOATS, Sample, TensorMaker, call, case, refused

aten = torch.ops.aten
UNDEFINED = "shape"


def fractional(sample: Sample) -> bool:
    dtype = sample.kwargs.get("dtype")
    whole = all(float(a).is_integer() for a in sample.args)
    return not whole and dtype is not None and not dtype.is_floating_point


case(
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_permuted.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
    compare=UNDEFINED,
)
REASON = "integers between fractional bounds"
case(
    aten.arange.default,
    samples=lambda t: [call(5), call(0), call(2.5), call(5, dtype=t.dtype)],
    dtypes=(*FLOATS, torch.int64, torch.int32),
    fails=[refused(REASON, when=fractional)],
)
case(
    aten.arange.start,
    samples=lambda t: [call(2, 7), call(0.5, 3.0), call(7, 2.5 + 5, dtype=torch.float32)],
    fails=[refused(REASON, when=fractional)],
)
case(
    aten.arange.start_step,
    samples=lambda t: [
        *(call(1, 8, 3), call(8, 1, -3), call(0, 1, 0.1), call(0.0, 3.0, 1)),
        *(call(0, 9.0, 2.0, dtype=torch.int64), call(5, -5, -1.0, dtype=torch.int64)),
    ],
    fails=[refused(REASON, when=fractional)],
)
case(
    aten.linspace.default,
    aten.linspace.Tensor_Tensor,
    aten.linspace.Tensor_Scalar,
    aten.linspace.Scalar_Tensor,
    aten.logspace.default,
    fails=[
        refused(
            "complex numbers, and integers that depend on the last bit of the step",
            when=lambda s: not s.kwargs.get("dtype", torch.float32).is_floating_point,
        )
    ],
)


def same(t: TensorMaker) -> list[Sample]:
    return [call(t(2, 3)), call(t()), call(t(0, 2))]


case(
    aten.alias.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.detach_copy.default,
    aten.alias_copy.default,
    aten.lift_fresh.default,
    aten.lift_fresh_copy.default,
    samples=same,
    dtypes=DTYPES,
)
TARGETS = (torch.float32, torch.float16, torch.int64, torch.bool)
case(
    aten._to_copy.default,
    samples=lambda t: [call(t(2, 3)), *(call(t(2, 3), dtype=d) for d in TARGETS)],
    dtypes=(*FLOATS, torch.int64, torch.bool),
)
case(
    aten.to.dtype,
    samples=lambda t: [call(t(2, 3), d) for d in TARGETS],
    dtypes=(*FLOATS, torch.int64, torch.bool),
)
case(aten.to.dtype_layout, samples=lambda t: [call(t(2, 3), dtype=d) for d in TARGETS])
case(aten.to.device, samples=lambda t: [call(t(2, 3), "cpu", d) for d in TARGETS])
case(
    aten.to.other,
    aten.type_as.default,
    samples=lambda t: [call(t(2, 3), t(1, dtype=d)) for d in TARGETS],
)
case(
    aten.copy.default,
    samples=lambda t: [call(t(2, 3), t(3)), call(t(2, 3), t(2, 3, dtype=torch.int64))],
)
case(
    aten.fill.Tensor,
    samples=lambda t: [call(t(2, 3), t()), call(t(2, 3), t(dtype=torch.int64))],
)


case(aten.zero.default, samples=lambda t: [call(t(2, 3)), call(t())])


# Numbers

PAIRS = [call(7, 2), call(-7, 2), call(4, 4)]
case(
    *(
        getattr(operator, name)
        for name in "add sub mul floordiv mod eq ne lt le gt ge and_ or_".split()
    ),
    torch.sym_max,
    torch.sym_min,
    samples=lambda t: PAIRS,
)
case(operator.neg, samples=lambda t: [call(3)])
case(torch.sym_not, samples=lambda t: [call(True), call(False)])
case(torch.sym_ite, samples=lambda t: [call(True, 1, 2), call(False, 1, 2)])
case(aten.sym_size.int, samples=lambda t: [call(t(2, 3), 1), call(t(2, 3), -2)])
case(aten.sym_numel.default, samples=lambda t: [call(t(2, 3)), call(t())])
