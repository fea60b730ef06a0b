"""Calls that change nothing, that repeat others, or that are known already."""

from __future__ import annotations

import operator
from typing import Any

import mlx.core as mx

from torch2mlx.compiler.builder import Call, Value
from torch2mlx.compiler.codegen.expressions import symbols_in
from torch2mlx.compiler.layers import LayerUse
from torch2mlx.compiler.passes.rewriting import (
    called,
    extents,
    is_floating,
    is_number,
    is_symbolic,
    make,
    rewritten,
)
from torch2mlx.compiler.program import Program, Step, values_in
from torch2mlx.compiler.symbolic import SymbolicInt

__all__ = ["simplify"]

_LARGEST_CONSTANT = 16


def simplify(program: Program) -> Program:
    """Drop dead, idle and repeated calls; compute small constants."""
    symbolic = is_symbolic(program)
    seen: dict[Any, Value] = {}

    def rule(step: Step, steps: list[Step]) -> Value | None:
        call = step.call
        if len(call.outputs) != 1 or call.sequence:
            return None
        value = _idle(call, symbolic) or _merged(call, steps, step)
        if value is None:
            value = _constant(call)
        if value is not None:
            return value
        key = _key(step)
        if key is not None:
            if key in seen:
                return seen[key]
            seen[key] = call.outputs[0]
        return None

    return rewritten(program, rule)


def _idle(call: Call, symbolic: bool) -> Value | None:
    """The argument that the call returns as it is."""
    if not call.args or not isinstance(call.args[0], Value):
        return _neutral(call, 0) if len(call.args) == 2 else None
    source, result = call.args[0], call.outputs[0]
    function = call.function
    if function is mx.astype:
        return source if source.dtype == call.args[1] else _recast(source, call.args[1])
    if function in (mx.reshape, mx.flatten, mx.unflatten, mx.broadcast_to):
        shape = extents(source, symbolic)
        same = shape is not None and shape == extents(result, symbolic)
        return source if same else None
    if function is operator.getitem:
        key = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
        return source if all(_everything(k) for k in key) else None
    if len(call.args) == 2:
        return _neutral(call, 1)
    return None


def _merged(call: Call, steps: list[Step], step: Step) -> Value | None:
    """New axes of an array with new axes, in one call."""
    if call.function is not mx.expand_dims or not called(call.args[0], mx.expand_dims):
        return None
    inner = call.args[0].call
    first, second = (_axes(c) for c in (inner, call))
    if first is None or second is None:
        return None
    kept = [i for i in range(call.outputs[0].ndim) if i not in second]
    axes = tuple(sorted([*second, *(kept[a] for a in first)]))
    new = make(mx.expand_dims, inner.args[0], axes, dims=call.outputs[0].dims)
    assert new.call is not None
    steps.append(Step(new.call, step.origin))
    return new


def _axes(call: Call) -> list[int] | None:
    """The new axes of an `expand_dims`, counted from the front."""
    if len(call.args) != 2 or call.kwargs:
        return None
    given = (call.args[1],) if isinstance(call.args[1], int) else call.args[1]
    return [a % call.outputs[0].ndim for a in given]


def _recast(source: Value, dtype: Any) -> Value | None:
    """The value before a cast to a wider float, cast back."""
    if not called(source, mx.astype):
        return None
    assert source.call is not None
    original = source.call.args[0]
    wider = is_floating(original) and source.dtype in (mx.float32, original.dtype)
    return original if wider and original.dtype == dtype else None


def _everything(key: Any) -> bool:
    if key is Ellipsis:
        return True
    if not isinstance(key, slice) or key.step not in (None, 1):
        return False
    whole = key.start is None or (type(key.start) is int and key.start == 0)
    return whole and key.stop is None


_NEUTRAL: dict[Any, tuple[int, bool]] = {
    mx.add: (0, True),
    mx.subtract: (0, False),
    mx.multiply: (1, True),
    mx.divide: (1, False),
}
"""Function → its neutral number, and whether it may come first."""


def _neutral(call: Call, place: int) -> Value | None:
    """The other argument, where one is 0 or 1 and changes neither values nor type."""
    try:
        known = _NEUTRAL.get(call.function)
    except TypeError:
        return None
    if known is None or call.kwargs:
        return None
    number, first = known
    other = call.args[1 - place]
    given = call.args[place]
    if not isinstance(other, Value) or not is_number(given) or given != number:
        return None
    if (place == 0 and not first) or other.dtype != call.outputs[0].dtype:
        return None
    return other


def _constant(call: Call) -> Value | None:
    """The result, if it depends on written constants only and is short to write."""
    values = list(values_in((call.args, call.kwargs)))
    if not values or any(v.call is not None or v.name for v in values):
        return None
    if isinstance(call.function, LayerUse) or _random(call) or symbols_in((call.args, call.kwargs)):
        return None
    result = call.outputs[0]
    if result.array.size > _LARGEST_CONSTANT or any(
        isinstance(n, SymbolicInt) for n in result.dims or ()
    ):
        return None
    if result.array.size == 0 or result.dtype == mx.bfloat16:
        return None
    return Value(mx.contiguous(result.array), dims=result.dims)


def _random(call: Call) -> bool:
    module = getattr(call.function, "__module__", "") or ""
    return "random" in module or "sampling" in module


def _key(step: Step) -> Any:
    """Equal for calls with equal results in one call of one module."""
    call = step.call
    if _random(call):
        return None
    try:
        key = (
            call.function,
            tuple((f.path, f.call) for f in step.origin.frames),
            _frozen(call.args),
            _frozen(call.kwargs),
        )
        hash(key)
    except TypeError:
        return None
    return key


def _frozen(argument: Any) -> Any:
    if isinstance(argument, Value):
        return ("value", id(argument))
    if isinstance(argument, list | tuple):
        return (type(argument).__name__, *map(_frozen, argument))
    if isinstance(argument, dict):
        return ("dict", *((k, _frozen(v)) for k, v in sorted(argument.items())))
    if isinstance(argument, slice):
        return ("slice", *map(_frozen, (argument.start, argument.stop, argument.step)))
    if isinstance(argument, mx.Dtype):
        return ("dtype", str(argument))
    return (type(argument).__name__, repr(argument))
