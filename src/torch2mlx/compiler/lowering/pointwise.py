"""Elementwise mathematics: functions of one operand, most of them as tables."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.registry import Lowering, LoweringError, lowering
from torch2mlx.compiler.lowering.types import (
    as_float,
    is_bool,
    is_floating,
)
from torch2mlx.compiler.runtime import pointwise as rt

__all__: list[str] = []

aten = torch.ops.aten


def _of_real(function: Any) -> Lowering:
    """Integers and bools become floats first; complex numbers only where MLX takes them."""

    def lower(b: Builder, x: Value) -> Any:
        try:
            return b.call(function, as_float(b, x))
        except ValueError as error:
            raise LoweringError(f"{function.__name__}: dtype={x.dtype}: {error}") from None

    return lower


_REAL_FUNCTIONS = {
    (aten.exp,): mx.exp,
    (aten.exp2, aten.special_exp2): rt.exp2,
    (aten.expm1, aten.special_expm1): mx.expm1,
    (aten.log,): mx.log,
    (aten.log2,): mx.log2,
    (aten.log10,): mx.log10,
    (aten.log1p, aten.special_log1p): mx.log1p,
    (aten.sqrt,): mx.sqrt,
    (aten.rsqrt,): mx.rsqrt,
    (aten.reciprocal,): mx.reciprocal,
    (aten.sin,): mx.sin,
    (aten.cos,): mx.cos,
    (aten.tan,): mx.tan,
    (aten.sinh,): mx.sinh,
    (aten.cosh,): mx.cosh,
    (aten.tanh,): mx.tanh,
    (aten.asin, aten.arcsin): mx.arcsin,
    (aten.acos, aten.arccos): mx.arccos,
    (aten.atan, aten.arctan): mx.arctan,
    (aten.asinh, aten.arcsinh): mx.arcsinh,
    (aten.acosh, aten.arccosh): mx.arccosh,
    (aten.atanh, aten.arctanh): mx.arctanh,
    (aten.erf, aten.special_erf): mx.erf,
    (aten.erfinv, aten.special_erfinv): mx.erfinv,
    (aten.erfc, aten.special_erfc): rt.erfc,
    (aten.sigmoid, aten.special_expit): mx.sigmoid,
    (aten.deg2rad,): mx.radians,
    (aten.rad2deg,): mx.degrees,
    (aten.sinc, aten.special_sinc): rt.sinc,
    (aten.log_sigmoid,): rt.log_sigmoid,
}
for _packets, _function in _REAL_FUNCTIONS.items():
    lowering(*(packet.default for packet in _packets))(_of_real(_function))


def _rounding(function: Any) -> Lowering:
    """Integers are their own rounding; MLX would pass them through floats on some devices."""

    def lower(b: Builder, x: Value) -> Any:
        return b.call(function, x) if is_floating(x.dtype) else x

    return lower


_ROUNDINGS = {
    (aten.floor,): mx.floor,
    (aten.ceil,): mx.ceil,
    (aten.trunc, aten.fix): mx.trunc,
    (aten.round,): mx.round,
}
for _packets, _function in _ROUNDINGS.items():
    lowering(*(packet.default for packet in _packets))(_rounding(_function))


def _same_type(function: Any) -> Lowering:
    def lower(b: Builder, x: Value) -> Any:
        return b.call(function, x)

    return lower


_SAME_TYPE = {
    (aten.neg, aten.negative): mx.negative,
    (aten.square,): mx.square,
    (aten.frac,): rt.frac,
    (aten.bitwise_not,): mx.bitwise_invert,
    (aten.isnan,): mx.isnan,
    (aten.isinf,): mx.isinf,
    (aten.isfinite,): mx.isfinite,
    (aten.isposinf,): mx.isposinf,
    (aten.isneginf,): mx.isneginf,
}
for _packets, _function in _SAME_TYPE.items():
    lowering(*(packet.default for packet in _packets))(_same_type(_function))


@lowering(aten.abs.default, aten.absolute.default)
def lower_abs(b: Builder, x: Value) -> Any:
    """abs(Tensor self): bool as it is."""
    return x if is_bool(x.dtype) else b.call(mx.abs, x)


@lowering(aten.sign.default, aten.sgn.default)
def lower_sign(b: Builder, x: Value) -> Any:
    """sign(Tensor self), sgn(Tensor self); a complex number divided by its modulus."""
    return x if is_bool(x.dtype) else b.call(mx.sign, x)


@lowering(aten.signbit.default)
def lower_signbit(b: Builder, x: Value) -> Any:
    """signbit(Tensor self)."""
    if is_floating(x.dtype):
        return b.call(rt.signbit, x)
    return b.call(mx.less, x, False if is_bool(x.dtype) else 0)


@lowering(aten.positive.default)
def lower_positive(b: Builder, x: Value) -> Any:
    """positive(Tensor self)."""
    return x


@lowering(aten.round.decimals)
def lower_round_decimals(b: Builder, x: Value, *, decimals: int) -> Any:
    """round.decimals(Tensor self, *, int decimals)."""
    if decimals == 0:
        return b.call(mx.round, x)
    return b.call(rt.round_decimals, x, decimals)


@lowering(aten.logit.default, aten.special_logit.default)
def lower_logit(b: Builder, x: Value, eps: float | None = None) -> Any:
    """logit(Tensor self, float? eps=None)."""
    return b.call(rt.logit, as_float(b, x), *(() if eps is None else (eps,)))


@lowering(aten.nan_to_num.default)
def lower_nan_to_num(
    b: Builder,
    x: Value,
    nan: float | None = None,
    posinf: float | None = None,
    neginf: float | None = None,
) -> Any:
    """nan_to_num(Tensor self, float? nan=None, float? posinf=None, float? neginf=None)."""
    if not is_floating(x.dtype):
        return x
    limits = mx.finfo(x.dtype)
    above = float(limits.max) if posinf is None else posinf
    below = float(limits.min) if neginf is None else neginf
    return b.call(rt.nan_to_num, x, 0.0 if nan is None else nan, above, below)
