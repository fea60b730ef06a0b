"""Arrays that are known functions of their indices: positions, and masks made of them.

Before: mask = (mx.arange(length)[:, None] - mx.arange(length)[None]) >= 0
After:  element [i, j] of mask is true where i - j ≥ 0, for every length

What is known holds for all sizes of the inputs; example values are never looked at.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import mlx.core as mx

from torch2mlx.compiler.builder import Call, Value
from torch2mlx.compiler.passes.rewriting import is_number
from torch2mlx.compiler.runtime import reductions
from torch2mlx.compiler.symbolic import SymbolicInt

__all__ = ["Affine", "Condition", "known"]


@dataclass(frozen=True)
class Affine:
    """Σ coefficients[axis] · index[axis] + constant, at every index."""

    coefficients: tuple[int, ...]
    constant: int = 0

    @property
    def is_constant(self) -> bool:
        return not any(self.coefficients)


@dataclass(frozen=True)
class Condition:
    """True where `bound` is at least 0."""

    bound: Affine

    @property
    def always(self) -> bool:
        """True everywhere: indices are never negative."""
        return self.bound.constant >= 0 and min(self.bound.coefficients, default=0) >= 0

    @property
    def never(self) -> bool:
        return self.bound.constant < 0 and max(self.bound.coefficients, default=0) <= 0


Known = Affine | Condition

_FOUND: WeakKeyDictionary[Value, Known | None] = WeakKeyDictionary()
"""What was found out before; a value never changes."""


def known(value: Any) -> Known | None:
    """What is known of an integer, a bool, or a float that was an integer; None: nothing."""
    if isinstance(value, bool):
        return Condition(Affine((), 0 if value else -1))
    if is_number(value):
        whole = math.isfinite(value) and value == int(value)
        return Affine((), int(value)) if whole else None
    if not isinstance(value, Value):
        return None
    if value not in _FOUND:
        _FOUND[value] = _of(value)
    return _FOUND[value]


def _of(value: Value) -> Known | None:
    call = value.call
    if call is None:
        return None if value.name else _written(value)
    if len(call.outputs) != 1 or call.sequence:
        return None
    try:
        rule = _RULES.get(call.function)
    except TypeError:
        return None
    return rule(call) if rule is not None else None


def _written(value: Value) -> Known | None:
    """A constant with the same number everywhere."""
    if value.array.size == 0 or mx.issubdtype(value.dtype, mx.complexfloating):
        return None
    first = value.array.flatten()[0]
    if not bool(mx.all(value.array == first)):
        return None
    return _filled(first.item(), value.ndim)


def _filled(number: Any, rank: int) -> Known | None:
    found = known(number)
    if isinstance(found, Affine):
        return Affine((0,) * rank, found.constant)
    return Condition(Affine((0,) * rank, found.bound.constant)) if found is not None else None


def _arange(call: Call) -> Known | None:
    start, _, step = (*call.args[:3], 1) if len(call.args) == 2 else call.args[:3]
    if call.kwargs or type(start) is not int or type(step) is not int:
        return None
    return Affine((step,), start)


def _constant(number: int) -> Any:
    def rule(call: Call) -> Known | None:
        result = call.outputs[0]
        return _filled(bool(number) if result.dtype == mx.bool_ else number, result.ndim)

    return rule


def _full(call: Call) -> Known | None:
    return _filled(call.args[1], call.outputs[0].ndim) if is_number(call.args[1]) else None


def _cast(call: Call) -> Known | None:
    found, dtype = known(call.args[0]), call.args[1]
    if isinstance(found, Condition) and dtype != mx.bool_:
        number = 1 if found.always else 0 if found.never else None
        return None if number is None else _filled(number, call.outputs[0].ndim)
    if isinstance(found, Affine) and dtype == mx.bool_:
        return _filled(found.constant != 0, call.outputs[0].ndim) if found.is_constant else None
    # Narrow types would round or wrap large positions.
    return found if dtype in (mx.int32, mx.int64, mx.float32, mx.bool_) else None


def _spread(found: Known, order: list[int | None]) -> Known:
    """The function over other axes: each the old one of that number, or a new one."""
    inner = found.bound if isinstance(found, Condition) else found
    moved = tuple(0 if a is None else inner.coefficients[a] for a in order)
    new = Affine(moved, inner.constant)
    return Condition(new) if isinstance(found, Condition) else new


def _expand_dims(call: Call) -> Known | None:
    found = known(call.args[0])
    if found is None or len(call.args) != 2:
        return None
    rank = call.outputs[0].ndim
    axes = call.args[1] if isinstance(call.args[1], tuple | list) else (call.args[1],)
    new = {a % rank for a in axes}
    old = iter(range(rank))
    return _spread(found, [None if i in new else next(old) for i in range(rank)])


def _aligned(value: Any, like: Value) -> Known | None:
    """What is known of an operand, over the axes of the result that it broadcasts to."""
    found = known(value)
    if found is None or not isinstance(value, Value):
        return None if found is None else _spread(found, [None] * like.ndim)
    missing = like.ndim - value.ndim
    order: list[int | None] = [None] * missing
    for axis in range(value.ndim):
        # An axis that is broadcast has only index 0.
        same = value.array.shape[axis] == like.array.shape[axis + missing]
        order.append(axis if same else None)
    return _spread(found, order)


def _broadcast_to(call: Call) -> Known | None:
    return _aligned(call.args[0], call.outputs[0])


def _reshape(call: Call) -> Known | None:
    """Only axes of extent 1 come and go, whatever the sizes."""
    value, result = call.args[0], call.outputs[0]
    found = known(value)
    shapes = [[repr(n) for n in v.shape] if v.dims is not None else None for v in (value, result)]
    if found is None or shapes[0] is None or shapes[1] is None:
        return None
    if [n for n in shapes[0] if n != "1"] != [n for n in shapes[1] if n != "1"]:
        return None
    old = iter(i for i, n in enumerate(shapes[0]) if n != "1")
    return _spread(found, [None if n == "1" else next(old) for n in shapes[1]])


def _transpose(call: Call) -> Known | None:
    found = known(call.args[0])
    if found is None or len(call.args) != 2:
        return None
    return _spread(found, [a % call.outputs[0].ndim for a in call.args[1]])


def _swapaxes(call: Call) -> Known | None:
    found = known(call.args[0])
    if found is None:
        return None
    order: list[int | None] = list(range(call.outputs[0].ndim))
    a, b = call.args[1:3]
    order[a], order[b] = order[b], order[a]
    return _spread(found, order)


def _combine(sign: int) -> Any:
    def rule(call: Call) -> Known | None:
        left, right = (_aligned(a, call.outputs[0]) for a in call.args)
        if not isinstance(left, Affine) or not isinstance(right, Affine):
            return None
        pairs = zip(left.coefficients, right.coefficients, strict=True)
        return Affine(tuple(a + sign * b for a, b in pairs), left.constant + sign * right.constant)

    return rule


def _multiply(call: Call) -> Known | None:
    left, right = (_aligned(a, call.outputs[0]) for a in call.args)
    if not isinstance(left, Affine) or not isinstance(right, Affine):
        return None
    if left.is_constant:
        left, right = right, left
    if not right.is_constant:
        return None
    factor = right.constant
    return Affine(tuple(a * factor for a in left.coefficients), left.constant * factor)


def _compare(name: str) -> Any:
    def rule(call: Call) -> Known | None:
        difference = _combine(-1)(call)
        if difference is None:
            return None
        negated = Affine(tuple(-a for a in difference.coefficients), -difference.constant)
        if name in ("equal", "not_equal"):
            if not difference.is_constant:
                return None
            return _filled((difference.constant == 0) == (name == "equal"), call.outputs[0].ndim)
        bound = difference if name.startswith("greater") else negated
        if not name.endswith("equal"):
            bound = Affine(bound.coefficients, bound.constant - 1)
        return Condition(bound)

    return rule


def _both(call: Call) -> Known | None:
    left, right = (_aligned(a, call.outputs[0]) for a in call.args)
    if not isinstance(left, Condition) or not isinstance(right, Condition):
        return None
    if left.always or right.never:
        return right
    return left if right.always or left.never or left == right else None


def _not(call: Call) -> Known | None:
    found = known(call.args[0])
    if not isinstance(found, Condition):
        return None
    negated = tuple(-a for a in found.bound.coefficients)
    return Condition(Affine(negated, -found.bound.constant - 1))


def _concatenate(call: Call) -> Known | None:
    """A first element put before the rest, which it continues: [-1] and [0, 1, 2, ...]."""
    parts = call.args[0]
    axis = call.kwargs.get("axis", call.args[1] if len(call.args) > 1 else 0)
    if len(parts) != 2 or parts[0].array.shape[axis] != 1:
        return None
    first, rest = (known(p) for p in parts)
    if not isinstance(first, Affine) or not isinstance(rest, Affine):
        return None
    shifted = Affine(rest.coefficients, rest.constant - rest.coefficients[axis])
    start = list(shifted.coefficients), list(first.coefficients)
    for coefficients in start:
        coefficients[axis] = 0
    same = start[0] == start[1] and shifted.constant == first.constant
    return shifted if same else None


def _differences(call: Call) -> Known | None:
    found = known(call.args[0])
    if not isinstance(found, Affine):
        return None
    return _filled(found.coefficients[call.args[1]], call.outputs[0].ndim)


def _cumsum(call: Call) -> Known | None:
    found = known(call.args[0])
    nothing = isinstance(found, Affine) and found.is_constant and found.constant == 0
    return found if nothing else None


def _getitem(call: Call) -> Known | None:
    value, key = call.args
    found = known(value)
    if found is None:
        return None
    keys = list(key) if isinstance(key, tuple) else [key]
    if all(isinstance(k, Value) for k in keys) and len(keys) == value.ndim:
        return _looked_up(found, keys, call.outputs[0])
    if Ellipsis in [k for k in keys if not isinstance(k, Value)]:
        place = keys.index(Ellipsis)
        given = sum(k is not None for k in keys) - 1
        keys[place : place + 1] = [slice(None)] * (value.ndim - given)
    keys += [slice(None)] * (value.ndim - sum(k is not None for k in keys))
    order: list[int | None] = []
    axis = 0
    for item in keys:
        if item is None:
            order.append(None)
            continue
        start = item.start if isinstance(item, slice) else None
        plain = isinstance(item, slice) and item.step in (None, 1) and start in (None, 0)
        if not plain or isinstance(start, SymbolicInt):
            return None
        order.append(axis)
        axis += 1
    return _spread(found, order)


def _take(call: Call) -> Known | None:
    found = known(call.args[0])
    axis = call.kwargs.get("axis", call.args[2] if len(call.args) > 2 else None)
    if found is None or call.args[0].ndim != 1 or axis not in (0, -1):
        return None
    return _looked_up(found, [call.args[1]], call.outputs[0])


def _looked_up(found: Known, keys: list[Value], result: Value) -> Known | None:
    """The elements at index arrays, one for every axis."""
    inner = found.bound if isinstance(found, Condition) else found
    coefficients, constant = [0] * result.ndim, inner.constant
    for factor, key in zip(inner.coefficients, keys, strict=True):
        if factor == 0:
            continue
        index = _aligned(key, result)
        if not isinstance(index, Affine) or index.constant < 0 or min(index.coefficients) < 0:
            return None  # a negative index counts from the end
        coefficients = [
            c + factor * k for c, k in zip(coefficients, index.coefficients, strict=True)
        ]
        constant += factor * index.constant
    new = Affine(tuple(coefficients), constant)
    return Condition(new) if isinstance(found, Condition) else new


_RULES: dict[Any, Any] = {
    mx.arange: _arange,
    mx.ones: _constant(1),
    mx.zeros: _constant(0),
    mx.full: _full,
    mx.astype: _cast,
    mx.expand_dims: _expand_dims,
    mx.broadcast_to: _broadcast_to,
    mx.reshape: _reshape,
    mx.transpose: _transpose,
    mx.swapaxes: _swapaxes,
    mx.add: _combine(1),
    mx.subtract: _combine(-1),
    mx.multiply: _multiply,
    mx.bitwise_and: _both,
    mx.logical_and: _both,
    mx.bitwise_invert: _not,
    mx.logical_not: _not,
    mx.concatenate: _concatenate,
    mx.cumsum: _cumsum,
    reductions.differences: _differences,
    mx.take: _take,
    operator.getitem: _getitem,
    **{
        getattr(mx, name): _compare(name)
        for name in "less less_equal greater greater_equal equal not_equal".split()
    },
}
"""Function → what its result is, given what is known of its arguments."""
