"""Comparisons, logic, bits and choices, elementwise."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.registry import Lowering, lowering
from torch2mlx.compiler.lowering.types import is_bool, promote
from torch2mlx.compiler.runtime import pointwise as rt

__all__: list[str] = []

aten = torch.ops.aten


def _promoting(function: Any) -> Lowering:
    def lower(b: Builder, x: Any, y: Any) -> Any:
        return b.call(function, *promote(b, x, y))

    return lower


_COMPARISONS = {
    (aten.eq,): mx.equal,
    (aten.ne, aten.not_equal): mx.not_equal,
    (aten.lt, aten.less): mx.less,
    (aten.le, aten.less_equal): mx.less_equal,
    (aten.gt, aten.greater): mx.greater,
    (aten.ge, aten.greater_equal): mx.greater_equal,
}
for _packets, _function in _COMPARISONS.items():
    for _packet in _packets:
        lowering(_packet.Tensor, _packet.Scalar)(_promoting(_function))

_BITS = {
    (aten.bitwise_and, aten.__and__): mx.bitwise_and,
    (aten.bitwise_or, aten.__or__): mx.bitwise_or,
    (aten.bitwise_xor, aten.__xor__): mx.bitwise_xor,
}
for _packets, _function in _BITS.items():
    for _packet in _packets:
        lowering(_packet.Tensor, _packet.Scalar)(_promoting(_function))
lowering(
    aten.bitwise_and.Scalar_Tensor,
)(_promoting(mx.bitwise_and))
lowering(aten.bitwise_or.Scalar_Tensor)(_promoting(mx.bitwise_or))
lowering(aten.bitwise_xor.Scalar_Tensor)(_promoting(mx.bitwise_xor))
lowering(
    aten.bitwise_left_shift.Tensor,
    aten.bitwise_left_shift.Tensor_Scalar,
    aten.__lshift__.Tensor,
    aten.__lshift__.Scalar,
)(_promoting(rt.left_shift))
lowering(
    aten.bitwise_right_shift.Tensor,
    aten.bitwise_right_shift.Tensor_Scalar,
    aten.__rshift__.Tensor,
    aten.__rshift__.Scalar,
)(_promoting(rt.right_shift))


def _truth(b: Builder, x: Value) -> Value:
    if is_bool(x.dtype):
        return x
    result: Value = b.call(mx.not_equal, x, 0)
    return result


def _logical(function: Any) -> Lowering:
    def lower(b: Builder, *operands: Value) -> Any:
        return b.call(function, *(_truth(b, x) for x in operands))

    return lower


lowering(aten.logical_and.default)(_logical(mx.logical_and))
lowering(aten.logical_or.default)(_logical(mx.logical_or))
lowering(aten.logical_xor.default)(_logical(mx.not_equal))
lowering(aten.logical_not.default)(_logical(mx.logical_not))


@lowering(aten.isclose.default)
def lower_isclose(
    b: Builder,
    x: Value,
    y: Value,
    rtol: float = 1e-5,
    atol: float = 1e-8,
    equal_nan: bool = False,
) -> Any:
    """isclose(Tensor self, Tensor other, float rtol=1e-05, float atol=1e-08, bool equal_nan)."""
    return b.call(rt.isclose, *promote(b, x, y, floating=True), rtol, atol, equal_nan)


@lowering(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar)
def lower_where(b: Builder, condition: Value, x: Any, y: Any) -> Any:
    """where(Tensor condition, Tensor or Scalar self, Tensor or Scalar other)."""
    return b.call(mx.where, b.cast(condition, mx.bool_), *promote(b, x, y))


@lowering(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def lower_masked_fill(b: Builder, x: Value, mask: Value, value: Any) -> Any:
    """masked_fill(Tensor self, Tensor mask, Tensor or Scalar value), in the type of self."""
    if isinstance(value, Value):
        value = b.cast(value, x.dtype)
    elif is_bool(x.dtype):
        value = bool(value)
    return b.call(mx.where, mask, value, x)
