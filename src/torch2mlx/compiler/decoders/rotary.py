"""Rotary position embedding at a cache's positions, as `mx.fast.rope`.

Before:  angles = positions(cache, ...) ⊗ inv_freq        in the module of all layers
         x * cos(angles, angles) + rotated(x) * sin(...)  in each layer
After:   mx.fast.rope(x, width, traditional=False, ..., offset=first_positions(cache),
                      freqs=1 / inv_freq)

The rotation is then computed in float32, as mlx-lm's own models do, where PyTorch rounds sines
and cosines to the model's dtype first.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from torch2mlx.compiler.builder import Value
from torch2mlx.compiler.decoders.lowering import first_positions, frequencies, positions
from torch2mlx.compiler.passes.rewriting import called, make, rewritten
from torch2mlx.compiler.program import Program, Step

__all__ = ["with_rope"]


@dataclass(frozen=True)
class _Angles:
    """Angles of a rotation.

    Attributes:
        inverse: frequencies, float32 [width / 2].
        positions: they are multiplied with.
    """

    inverse: Value
    positions: Value


def with_rope(program: Program) -> Program:
    """The program with spelled-out rotations as one call."""
    made: dict[int, tuple[Value, Value]] = {}

    def rule(step: Step, steps: list[Step]) -> Value | None:
        if len(step.call.outputs) != 1:
            return None
        y = step.call.outputs[0]
        angles = _angles(y)
        if angles is not None:
            # Made here, where the module of all layers is; its layers take them as arguments.
            cache = _args(angles.positions)[0]
            first = make(first_positions, cache)
            freqs = make(mx.divide, 1.0, angles.inverse, dims=angles.inverse.dims)
            first.name, freqs.name = "offset", "freqs"
            place = next(s for s in steps if s.call is angles.positions.call)
            steps += [Step(first.call, place.origin)] if first.call is not None else []
            steps += [Step(freqs.call, step.origin)] if freqs.call is not None else []
            made[id(y)] = (first, freqs)
            return None
        found = _rotation(y, made)
        if found is None:
            return None
        x, scale, (first, freqs) = found
        if scale != 1:
            x = make(mx.multiply, x, scale, dims=x.dims)
            if x.call is not None:
                steps.append(Step(x.call, step.origin))
        width = x.array.shape[-1]
        new = make(
            mx.fast.rope,
            x,
            width,
            traditional=False,
            base=None,
            scale=1.0,
            offset=first,
            freqs=freqs,
            dims=y.dims,
        )
        if new.call is not None:
            steps.append(Step(new.call, step.origin))
        return new

    return rewritten(program, rule)


def _args(value: Value) -> tuple[Any, ...]:
    assert value.call is not None
    return value.call.args


def _behind(value: Any, *functions: Any) -> Any:
    """What a value is made of by casts and new axes."""
    while called(value, *functions):
        value = _args(value)[0]
    return value


def _angles(y: Value) -> _Angles | None:
    """Positions times frequencies, twice side by side."""
    if not called(y, mx.concatenate) or y.dtype != mx.float32 or y.ndim != 3:
        return None
    parts = _args(y)[0]
    if len(parts) != 2 or parts[0] is not parts[1]:
        return None
    half = parts[0]
    if called(half, mx.swapaxes, mx.transpose) and called(_args(half)[0], mx.matmul):
        inverse, at = _args(_args(half)[0])  # [batch, width / 2, 1] @ [batch, 1, length], turned
    elif called(half, mx.multiply):
        at, inverse = _args(half)
    else:
        return None
    views = (mx.expand_dims, mx.astype, mx.broadcast_to, mx.reshape, operator.getitem)
    at, inverse = _behind(at, *views), _behind(inverse, *views)
    if not called(at, positions):
        at, inverse = inverse, at
    plain = called(at, positions) and isinstance(inverse, Value)
    known = plain and (inverse.call is None or called(inverse, frequencies))
    if not known or inverse.ndim != 1 or inverse.dtype != mx.float32:
        return None
    return _Angles(inverse, at) if inverse.array.shape[0] * 2 == y.array.shape[-1] else None


def _rotation(
    y: Value, made: dict[int, tuple[Value, Value]]
) -> tuple[Value, float, tuple[Value, Value]] | None:
    """(x, scale, first position and frequencies) of a rotation of [batch, heads, length, width]."""
    if not called(y, mx.add) or y.ndim != 4:
        return None
    one, two = _args(y)
    for straight, turned in ((one, two), (two, one)):
        for x, cos in _factors(straight):
            for rotated, sin in _factors(turned):
                first, scale = _table(cos, mx.cos)
                second, same = _table(sin, mx.sin)
                known = first is not None and id(first) in made and first is second
                if known and scale == same and _is_rotated(rotated, x):
                    return x, scale, made[id(first)]
    return None


def _factors(value: Any) -> list[tuple[Value, Value]]:
    if not called(value, mx.multiply):
        return []
    a, b = _args(value)
    return [(a, b), (b, a)] if isinstance(a, Value) and isinstance(b, Value) else []


def _table(value: Any, function: Any) -> tuple[Any, float]:
    """The angles of a table [batch, 1, length, width] of sines, and its scale."""
    if not isinstance(value, Value) or value.ndim != 4 or value.array.shape[1] != 1:
        return None, 1.0
    scale = 1.0
    while called(value, mx.expand_dims, mx.astype, mx.multiply, operator.getitem):
        given = _args(value)
        if called(value, mx.multiply):
            if not isinstance(given[1], int | float):
                return None, 1.0
            scale *= given[1]
        value = given[0]
    return (_args(value)[0], scale) if called(value, function) else (None, 1.0)


def _is_rotated(value: Any, x: Value) -> bool:
    """Whether it is [-second half, first half] of x along its last axis."""
    if not called(value, mx.concatenate):
        return False
    parts = _args(value)[0]
    if len(parts) != 2 or not called(parts[0], mx.negative):
        return False
    half = x.array.shape[-1] // 2
    return _is_part(_args(parts[0])[0], x, half, 2 * half) and _is_part(parts[1], x, 0, half)


def _is_part(value: Any, x: Value, start: int, stop: int) -> bool:
    if not called(value, operator.getitem) or _args(value)[0] is not x:
        return False
    key = _args(value)[1]
    last = key[-1] if isinstance(key, tuple) else key
    size = x.array.shape[-1]
    return isinstance(last, slice) and last.indices(size) == (start, stop, 1)
