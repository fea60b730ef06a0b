"""Elementwise operators: names that OpInfo does not reach, and what MLX cannot do."""

from __future__ import annotations

import torch
from table import FLOATS, INTEGERS, Sample, TensorMaker, call, case, refused

aten = torch.ops.aten
NUMBERS = (*FLOATS, torch.int64, torch.int32)
COMPLEX = (torch.complex64,)


def unary(t: TensorMaker) -> list[Sample]:
    return [call(t(2, 3, low=-1, high=1)), call(t(low=-1, high=1)), call(t(0, 2))]


def above_one(t: TensorMaker) -> list[Sample]:
    return [call(t(2, 3, low=1, high=4))]


def probabilities(t: TensorMaker) -> list[Sample]:
    return [call(t(2, 3, low=0.1, high=0.9)), call(t(2, 3, low=0, high=1), 0.2)]


def with_number(t: TensorMaker) -> list[Sample]:
    return [call(t(2, 3), 3), call(t(), 2.5), call(t(0, 2), 3), call(t(4), True), call(t(4), -2)]


def with_tensor(t: TensorMaker) -> list[Sample]:
    one = t.of([1, 2, 4])
    return [call(t(2, 3), one), call(t(2, 1, 3), one), call(t(3), t.of(2, torch.float32))]


case(
    aten.absolute.default,
    aten.fix.default,
    aten.negative.default,
    aten._conj_physical.default,
    aten.conj.default,
    samples=unary,
    dtypes=NUMBERS,
)
case(aten._conj.default, samples=lambda t: [call(t(2, 3)), call(t())], dtypes=COMPLEX)
case(
    aten.arccos.default,
    aten.arcsin.default,
    aten.arcsinh.default,
    aten.arctan.default,
    aten.special_erf.default,
    aten.special_erfc.default,
    aten.special_exp2.default,
    aten.special_expit.default,
    aten.special_expm1.default,
    aten.special_sinc.default,
    samples=unary,
    dtypes=FLOATS,
)
case(
    aten.arctanh.default,
    aten.special_erfinv.default,
    aten.special_log1p.default,
    samples=lambda t: [call(t(2, 3, low=-0.9, high=0.9))],
    dtypes=FLOATS,
)
case(aten.arccosh.default, samples=above_one, dtypes=FLOATS)
case(aten.special_logit.default, samples=probabilities, dtypes=FLOATS)
case(aten.arctan2.default, aten.special_xlogy.default, samples=with_tensor, dtypes=FLOATS)
case(
    aten.add.Scalar,
    aten.sub.Scalar,
    aten.subtract.Scalar,
    aten.mul.Scalar,
    aten.multiply.Scalar,
    aten.rsub.Scalar,
    samples=lambda t: [*with_number(t)[:3], call(t(4), -2)],
    dtypes=NUMBERS,
)
case(
    aten.div.Scalar,
    aten.divide.Scalar,
    aten.true_divide.Scalar,
    aten.remainder.Scalar,
    aten.fmod.Scalar,
    aten.floor_divide.Scalar,
    samples=with_number,
    dtypes=NUMBERS,
)
case(
    aten.div.Scalar_mode,
    aten.divide.Scalar_mode,
    samples=lambda t: [
        call(t(20), divisor, rounding_mode=mode)
        for divisor in (3, -3, 0.7)
        for mode in (None, "trunc", "floor")
    ],
    dtypes=NUMBERS,
)
case(
    aten.divide.Tensor_mode,
    samples=lambda t: [
        call(t(20), t.of(divisor), rounding_mode=mode)
        for divisor in (3, -3)
        for mode in (None, "trunc", "floor")
    ],
    dtypes=NUMBERS,
)
case(
    aten.divide.Tensor,
    aten.multiply.Tensor,
    aten.subtract.Tensor,
    samples=with_tensor,
    dtypes=NUMBERS,
)
case(
    aten.remainder.Scalar_Tensor,
    samples=lambda t: [call(7, t.of([2, 3, -4])), call(-7, t.of([2, 3, -4]))],
    dtypes=NUMBERS,
)
case(aten.copysign.Scalar, samples=lambda t: [call(t(5), -1.0), call(t(5), 2)], dtypes=FLOATS)
case(
    aten.xlogy.Scalar_Other,
    aten.special_xlogy.other_scalar,
    samples=lambda t: [call(t(5), 2.0), call(t.of([0, 1]), 0)],
    dtypes=FLOATS,
)
case(
    aten.xlogy.Scalar_Self,
    aten.special_xlogy.self_scalar,
    samples=lambda t: [call(2.0, t(5, low=0.1, high=3)), call(0, t.of([0.0, 1.0]))],
    dtypes=FLOATS,
)
case(
    aten.pow.Tensor_Scalar,
    samples=lambda t: [
        *(call(t(6, low=1, high=4), e) for e in (0, 1, 2, 3, 0.5, 1.5)),
        *(call(t(6, low=0.5, high=4, dtype=torch.float32), e) for e in (-0.5, -1, -2, -1.5)),
    ],
    dtypes=NUMBERS,
)
case(
    aten.pow.Scalar,
    samples=lambda t: [call(2, t(6, low=0, high=4)), call(1.5, t(6)), call(3, t(low=0, high=4))],
    dtypes=NUMBERS,
)
case(
    aten.clamp.default,
    aten.clip.default,
    samples=lambda t: [
        call(t(9), -1, 1),
        call(t(9), None, 1),
        call(t(9), -0.5),
        call(t(9), 1, -1),
        call(t(0), 0, 1),
        call(t(), 0.5, 0.75),
    ],
    dtypes=NUMBERS,
)
case(
    aten.clip.Tensor,
    samples=lambda t: [call(t(9), t.of(-1), t.of(1)), call(t(2, 3), None, t(3))],
    dtypes=NUMBERS,
)
case(
    aten.clamp_min.default,
    aten.clamp_max.default,
    samples=lambda t: [
        call(t(9), 1),
        call(t(9), 0.5),
        call(t.of([float("nan")], torch.float32), 0),
    ],
    dtypes=NUMBERS,
)
case(
    aten.complex.default,
    fails=[refused("complex numbers of half precision", dtypes=(torch.float16,))],
)
case(
    aten.expm1.default,
    aten.sigmoid.default,
    aten.silu.default,
    fails=[refused("MLX lacks the function of complex numbers", dtypes=COMPLEX)],
)
case(
    aten.rrelu.default,
    fails=[refused("training=True draws random slopes", when=lambda s: s.get(3, "training"))],
)
case(
    aten._prelu_kernel.default,
    samples=lambda t: [call(t(2, 3), t(1, 3)), call(t(4), t(1))],
    dtypes=FLOATS,
)


# Bits and comparisons

BITWISE = (*INTEGERS, torch.bool)


def bits(t: TensorMaker) -> list[Sample]:
    return [call(t(2, 3), t(3)), call(t(), t(2))]


case(
    aten.__and__.Tensor,
    aten.__or__.Tensor,
    aten.__xor__.Tensor,
    samples=bits,
    dtypes=BITWISE,
)
case(
    aten.__and__.Scalar,
    aten.__or__.Scalar,
    aten.__xor__.Scalar,
    aten.bitwise_and.Scalar,
    aten.bitwise_or.Scalar,
    aten.bitwise_xor.Scalar,
    samples=lambda t: [call(t(2, 3), True), call(t(2, 3), 5)],
    dtypes=BITWISE,
)
case(
    aten.bitwise_and.Scalar_Tensor,
    aten.bitwise_or.Scalar_Tensor,
    aten.bitwise_xor.Scalar_Tensor,
    samples=lambda t: [call(True, t(2, 3)), call(5, t(2, 3))],
    dtypes=BITWISE,
)
case(
    aten.__lshift__.Tensor,
    aten.__rshift__.Tensor,
    samples=lambda t: [call(t(2, 3), t.of([0, 1, 3]))],
    dtypes=INTEGERS,
)
case(
    aten.__lshift__.Scalar,
    aten.__rshift__.Scalar,
    aten.bitwise_left_shift.Tensor_Scalar,
    aten.bitwise_right_shift.Tensor_Scalar,
    samples=lambda t: [call(t(2, 3), 2), call(t(2, 3), 0)],
    dtypes=INTEGERS,
)
COMPARISONS = ("greater", "greater_equal", "less", "less_equal", "not_equal")
case(
    *(getattr(aten, name).Tensor for name in COMPARISONS),
    samples=lambda t: [call(t(2, 3), t(3)), call(t(), t(2, dtype=torch.int64))],
    dtypes=(*NUMBERS, torch.bool),
)
case(
    *(getattr(aten, name).Scalar for name in (*COMPARISONS, "eq", "ne", "lt", "le", "gt", "ge")),
    samples=lambda t: [call(t(2, 3), 1 if t.dtype == torch.bool else 2), call(t(), 0.5)],
    dtypes=(*NUMBERS, torch.bool),
)
case(
    aten.where.ScalarOther,
    samples=lambda t: [
        call(t(2, 3, dtype=torch.bool), t(3), value) for value in (0, 1.5, float("-inf"))
    ],
    dtypes=(*NUMBERS, torch.bool),
)
case(
    aten.where.ScalarSelf,
    samples=lambda t: [call(t(2, 3, dtype=torch.bool), value, t(3)) for value in (0, 1.5)],
    dtypes=(*NUMBERS, torch.bool),
)
case(
    aten.where.Scalar,
    samples=lambda t: [
        call(t(2, 3, dtype=torch.bool), a, b) for a, b in ((0, 1), (0.0, 1), (True, False))
    ],
)


# Special functions

case(
    aten.special_digamma.default,
    aten.special_psi.default,
    aten.special_gammaln.default,
    aten.special_i0.default,
    samples=lambda t: [call(t(200, low=-4.9, high=20)), call(t())],
)
case(aten.special_entr.default, samples=lambda t: [call(t.of([0.0, -1.0, 0.5, 3.0]))])
