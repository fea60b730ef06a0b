"""Lookups at every place in order, and conditions that always hold.

Before: mask[mx.arange(batch)[:, None, None, None], mx.arange(length)] & (mx.arange(length) >= 0)
After:  mask[:, None, None]
"""

from __future__ import annotations

import operator
from typing import Any

import mlx.core as mx

from torch2mlx.compiler.builder import Call, Value
from torch2mlx.compiler.passes.positions import Affine, Condition, known
from torch2mlx.compiler.passes.rewriting import extents, is_symbolic, make, rewritten
from torch2mlx.compiler.program import Program, Step

__all__ = ["drop_lookups"]


def drop_lookups(program: Program) -> Program:
    """Use arrays themselves where every element is taken at its own place."""
    symbolic = is_symbolic(program)

    def rule(step: Step, steps: list[Step]) -> Value | None:
        call = step.call
        if len(call.outputs) != 1 or call.sequence:
            return None
        result = call.outputs[0]
        if call.function in (mx.bitwise_and, mx.logical_and) and result.dtype == mx.bool_:
            new = _other(call)
        elif call.function is operator.getitem:
            new = _looked_up(call, symbolic)
        else:
            return None
        if new is None:
            return None
        if new.call is not None and new.call is not step.call and new.call not in _calls(steps):
            steps.append(Step(new.call, step.origin))
        if extents(new, symbolic) == extents(result, symbolic) is not None:
            return new
        if new.dims is None and new.call is not None:
            return None
        wide = make(mx.broadcast_to, new, result.shape, dims=result.dims)
        assert wide.call is not None
        steps.append(Step(wide.call, step.origin))
        return wide

    return rewritten(program, rule)


def _calls(steps: list[Step]) -> list[Call]:
    return [s.call for s in steps]


def _other(call: Call) -> Value | None:
    """The side of an "and" whose other side is true everywhere."""
    for condition, other in (call.args, call.args[::-1]):
        found = known(condition)
        if isinstance(found, Condition) and found.always and isinstance(other, Value):
            return other if other.dtype == mx.bool_ else None
    return None


def _looked_up(call: Call, symbolic: bool) -> Value | None:
    """The array with new axes, if index arrays take all of it in order."""
    value, keys = call.args
    result = call.outputs[0]
    if not isinstance(keys, tuple) or len(keys) != value.ndim:
        return None
    shapes = extents(value, symbolic), extents(result, symbolic)
    if not all(isinstance(k, Value) for k in keys) or shapes[0] is None or shapes[1] is None:
        return None
    places: list[int] = []
    for axis, key in enumerate(keys):
        place = _place(key, result)
        if place is None or shapes[1][place] != shapes[0][axis]:
            return None
        places.append(place)
    if places != sorted(set(places)):
        return None
    new = tuple(i for i in range(result.ndim) if i not in places)
    if not new:
        return value if shapes[0] == shapes[1] else None
    dims = tuple(value.shape[places.index(i)] if i in places else 1 for i in range(result.ndim))
    return make(mx.expand_dims, value, new if len(new) > 1 else new[0], dims=dims)


def _place(key: Any, result: Value) -> int | None:
    """The axis of the result whose index the key is."""
    found = known(key)
    if not isinstance(found, Affine) or found.constant or sorted(found.coefficients)[-1:] != [1]:
        return None
    if sum(map(abs, found.coefficients)) != 1:
        return None
    axis = found.coefficients.index(1)
    place = axis + result.ndim - key.ndim
    return place if key.array.shape[axis] == result.array.shape[place] else None
