"""Arithmetic of two or more operands, with torch's promotion of types."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.registry import Lowering, lowering
from torch2mlx.compiler.lowering.types import (
    is_bool,
    is_floating,
    is_integer,
    number_in,
    promote,
    result_dtype,
)
from torch2mlx.compiler.runtime import pointwise as rt

__all__: list[str] = []

aten = torch.ops.aten


def _scaled(b: Builder, y: Any, alpha: Any) -> Any:
    if alpha == 1 and not isinstance(alpha, bool):
        return y
    if isinstance(y, Value):
        alpha = number_in(alpha, y.dtype)
        return b.call(mx.logical_and if is_bool(y.dtype) else mx.multiply, y, alpha)
    return y * alpha


@lowering(aten.add.Tensor, aten.add.Scalar)
def lower_add(b: Builder, x: Value, y: Any, alpha: Any = 1) -> Any:
    """add(Tensor self, Tensor other, *, Scalar alpha=1): self + alpha · other; of bools: or."""
    x, y = promote(b, x, y)
    return b.call(mx.logical_or if is_bool(x.dtype) else mx.add, x, _scaled(b, y, alpha))


@lowering(aten.sub.Tensor, aten.sub.Scalar, aten.subtract.Tensor, aten.subtract.Scalar)
def lower_sub(b: Builder, x: Value, y: Any, alpha: Any = 1) -> Any:
    """sub(Tensor self, Tensor other, *, Scalar alpha=1): self - alpha · other."""
    x, y = promote(b, x, y)
    return b.call(mx.subtract, x, _scaled(b, y, alpha))


@lowering(aten.rsub.Tensor, aten.rsub.Scalar)
def lower_rsub(b: Builder, x: Value, y: Any, alpha: Any = 1) -> Any:
    """rsub(Tensor self, Tensor other, *, Scalar alpha=1): other - alpha · self."""
    x, y = promote(b, x, y)
    return b.call(mx.subtract, y, _scaled(b, x, alpha))


@lowering(aten.mul.Tensor, aten.mul.Scalar, aten.multiply.Tensor, aten.multiply.Scalar)
def lower_mul(b: Builder, x: Value, y: Any) -> Any:
    """mul(Tensor self, Tensor other); of bools: and."""
    x, y = promote(b, x, y)
    dtype = x.dtype if isinstance(x, Value) else y.dtype
    return b.call(mx.logical_and if is_bool(dtype) else mx.multiply, x, y)


_DIVISIONS = (aten.div, aten.divide)


@lowering(
    *(p.Tensor for p in _DIVISIONS),
    *(p.Scalar for p in _DIVISIONS),
    aten.true_divide.Tensor,
    aten.true_divide.Scalar,
)
def lower_div(b: Builder, x: Value, y: Any) -> Any:
    """div(Tensor self, Tensor other): a true division, of integers too."""
    return b.call(mx.divide, *promote(b, x, y, floating=True))


@lowering(*(p.Tensor_mode for p in _DIVISIONS), *(p.Scalar_mode for p in _DIVISIONS))
def lower_div_mode(b: Builder, x: Value, y: Any, *, rounding_mode: str | None = None) -> Any:
    """div.Tensor_mode(Tensor self, Tensor other, *, str? rounding_mode)."""
    if rounding_mode is None:
        return lower_div(b, x, y)
    if rounding_mode == "floor":
        return lower_floor_divide(b, x, y)
    integers = not is_floating(result_dtype(x, y))
    return b.call(
        rt.trunc_divide_integers if integers else rt.trunc_divide, *_arrays(b, *promote(b, x, y))
    )


@lowering(aten.floor_divide.default, aten.floor_divide.Scalar)
def lower_floor_divide(b: Builder, x: Value, y: Any) -> Any:
    """floor_divide(Tensor self, Tensor other).

    MLX's floor_divide rounds floats toward zero.
    """
    x, y = promote(b, x, y)
    if is_floating(x.dtype):
        return b.call(rt.floor_divide, *_arrays(b, x, y))
    return b.call(mx.floor_divide, x, y)


def _arrays(b: Builder, *operands: Any) -> list[Value]:
    """Numbers as 0-d arrays of the other operand's type, for runtime functions that ask for it."""
    dtype = next(o.dtype for o in operands if isinstance(o, Value))
    return [o if isinstance(o, Value) else b.call(mx.array, o, dtype) for o in operands]


@lowering(aten.remainder.Tensor, aten.remainder.Scalar, aten.remainder.Scalar_Tensor)
def lower_remainder(b: Builder, x: Any, y: Any) -> Any:
    """remainder(Tensor self, Tensor other): with the sign of the divisor."""
    return b.call(mx.remainder, *promote(b, x, y))


@lowering(aten.fmod.Tensor, aten.fmod.Scalar)
def lower_fmod(b: Builder, x: Value, y: Any) -> Any:
    """fmod(Tensor self, Tensor other): with the sign of the dividend."""
    return b.call(rt.fmod, *_arrays(b, *promote(b, x, y)))


@lowering(aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor)
def lower_pow(b: Builder, x: Value, exponent: Any) -> Any:
    """pow(Tensor self, Tensor or Scalar exponent)."""
    x, exponent = promote(b, x, exponent)
    if is_bool(x.dtype):
        return b.call(mx.logical_or, x, b.call(mx.logical_not, *_arrays(b, x, exponent)[1:]))
    if not isinstance(exponent, Value):
        special = {2: mx.square, 0.5: mx.sqrt, -0.5: mx.rsqrt, -1: mx.reciprocal}
        if exponent in special and (exponent == 2 or is_floating(x.dtype)):
            return b.call(special[exponent], x)
        return b.call(mx.power, x, exponent)
    if is_integer(x.dtype) and "uint" not in str(x.dtype):
        return b.call(rt.integer_power, x, exponent)
    return b.call(mx.power, x, exponent)


@lowering(aten.pow.Scalar)
def lower_pow_of_number(b: Builder, x: Any, exponent: Value) -> Any:
    """pow.Scalar(Scalar self, Tensor exponent)."""
    return lower_pow(b, *_arrays(b, *promote(b, x, exponent)))


def _binary_real(function: Any) -> Lowering:
    def lower(b: Builder, x: Any, y: Any) -> Any:
        return b.call(function, *_arrays(b, *promote(b, x, y, floating=True)))

    return lower


_BINARY_REAL = {
    (aten.atan2.default, aten.arctan2.default): mx.arctan2,
    (aten.hypot.default,): rt.hypot,
    (aten.logaddexp.default,): mx.logaddexp,
    (aten.logaddexp2.default,): rt.logaddexp2,
    (aten.xlogy.Tensor, aten.xlogy.Scalar_Other, aten.xlogy.Scalar_Self): rt.xlogy,
    (
        aten.special_xlogy.default,
        aten.special_xlogy.other_scalar,
        aten.special_xlogy.self_scalar,
    ): rt.xlogy,
    (aten.copysign.Tensor, aten.copysign.Scalar): rt.copysign,
    (aten.ldexp.Tensor,): rt.ldexp,
}


for _overloads, _function in _BINARY_REAL.items():
    lowering(*_overloads)(_binary_real(_function))


def _binary(function: Any) -> Lowering:
    def lower(b: Builder, x: Any, y: Any) -> Any:
        return b.call(function, *promote(b, x, y))

    return lower


_BINARY = {
    (aten.maximum.default, aten.max.other): mx.maximum,
    (aten.minimum.default, aten.min.other): mx.minimum,
    (aten.heaviside.default,): rt.heaviside,
}


for _overloads, _function in _BINARY.items():
    lowering(*_overloads)(_binary(_function))


@lowering(aten.fmax.default)
def lower_fmax(b: Builder, x: Value, y: Value) -> Any:
    """fmax(Tensor self, Tensor other)."""
    x, y = promote(b, x, y)
    return b.call(rt.fmax if is_floating(x.dtype) else mx.maximum, x, y)


@lowering(aten.fmin.default)
def lower_fmin(b: Builder, x: Value, y: Value) -> Any:
    """fmin(Tensor self, Tensor other)."""
    x, y = promote(b, x, y)
    return b.call(rt.fmin if is_floating(x.dtype) else mx.minimum, x, y)


@lowering(aten.clamp.default, aten.clamp.Tensor, aten.clip.default, aten.clip.Tensor)
def lower_clamp(b: Builder, x: Value, low: Any = None, high: Any = None) -> Any:
    """clamp(Tensor self, Tensor or Scalar? min=None, max=None); the upper bound wins."""
    x, low, high = promote(b, x, low, high)
    if low is None:
        return b.call(mx.minimum, x, high)
    if high is None:
        return b.call(mx.maximum, x, low)
    return b.call(mx.clip, x, low, high)


@lowering(aten.clamp_min.default, aten.clamp_min.Tensor)
def lower_clamp_min(b: Builder, x: Value, low: Any) -> Any:
    """clamp_min(Tensor self, Scalar min)."""
    return b.call(mx.maximum, *promote(b, x, low))


@lowering(aten.clamp_max.default, aten.clamp_max.Tensor)
def lower_clamp_max(b: Builder, x: Value, high: Any) -> Any:
    """clamp_max(Tensor self, Scalar max)."""
    return b.call(mx.minimum, *promote(b, x, high))


@lowering(aten.lerp.Scalar, aten.lerp.Tensor)
def lower_lerp(b: Builder, x: Value, end: Value, weight: Any) -> Any:
    """lerp(Tensor self, Tensor end, Tensor or Scalar weight)."""
    return b.call(rt.lerp, x, end, weight)


@lowering(aten.addcmul.default)
def lower_addcmul(b: Builder, x: Value, left: Value, right: Value, *, value: Any = 1) -> Any:
    """addcmul(Tensor self, Tensor tensor1, Tensor tensor2, *, Scalar value=1)."""
    x, left, right = promote(b, x, left, right)
    return b.call(mx.add, x, _scaled(b, b.call(mx.multiply, left, right), value))


@lowering(aten.addcdiv.default)
def lower_addcdiv(b: Builder, x: Value, left: Value, right: Value, *, value: Any = 1) -> Any:
    """addcdiv(Tensor self, Tensor tensor1, Tensor tensor2, *, Scalar value=1)."""
    x, left, right = promote(b, x, left, right)
    return b.call(mx.add, x, _scaled(b, b.call(mx.divide, left, right), value))
