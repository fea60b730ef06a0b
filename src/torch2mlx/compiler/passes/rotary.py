"""Rotary position embedding, spelled out, as `mx.fast.rope`.

Before: angles = positions[:, None] * inv_freq
        cos, sin = concatenate([angles, angles]).cos(), ... .sin()
        x * cos + concatenate([-x[..., d:], x[..., :d]], axis=-1) * sin
After:  mx.fast.rope(x, 2 * d, traditional=False, ..., freqs=1 / inv_freq)

Only where the positions are 0, 1, 2, ... (or begin at another known number) for every input,
and in float32: in half precision the original rounds between its steps.
"""

from __future__ import annotations

import operator
from typing import Any
from weakref import WeakKeyDictionary

import mlx.core as mx

from torch2mlx.compiler.builder import Value
from torch2mlx.compiler.passes.positions import Affine, known
from torch2mlx.compiler.passes.rewriting import called, make

__all__ = ["rotary"]

_FREQUENCIES: WeakKeyDictionary[Value, Value] = WeakKeyDictionary()
"""Inverse frequencies → what `mx.fast.rope` takes, made once."""


def rotary(y: Value) -> Value | None:
    """The rotation in one call, if the value is one."""
    if called(y, mx.concatenate):
        return _in_part(y)
    if y.dtype != mx.float32 or y.ndim < 3 or not called(y, mx.add):
        return None
    first, second = _args(y)
    for straight, turned in ((first, second), (second, first)):
        for x, cos in _factors(straight):
            angles = _angles_of(cos, mx.cos, y)
            if angles is None:
                continue
            for rotated, sin in _factors(turned):
                paired = _rotated(rotated, x)
                if paired is None or _angles_of(sin, mx.sin, y) is not angles:
                    continue
                found = _frequencies(angles, paired)
                if found is not None:
                    inverse, offset = found
                    return _rope(x, inverse, offset, paired)
    return None


def _in_part(y: Value) -> Value | None:
    """Only the first numbers of x turned: `mx.fast.rope` leaves the rest as it is."""
    parts = _args(y)[0]
    if len(parts) != 2 or not _last_axis(y, 1) or not called(parts[0], mx.fast.rope):
        return None
    turned, rest = parts
    first, dims = _args(turned)
    if not called(first, operator.getitem) or not called(rest, operator.getitem):
        return None
    x, width = _args(first)[0], turned.array.shape[-1]
    if dims != width or x.array.shape[-1] != y.array.shape[-1]:
        return None
    both = _part(first, x, slice(0, width)) and _part(rest, x, slice(width, x.array.shape[-1]))
    assert turned.call is not None
    return make(mx.fast.rope, x, dims, **turned.call.kwargs) if both else None


def _rope(x: Value, inverse: Value, offset: int, paired: bool) -> Value:
    if inverse not in _FREQUENCIES:
        _FREQUENCIES[inverse] = make(mx.divide, 1.0, inverse, dims=inverse.dims)
    return make(
        mx.fast.rope,
        x,
        x.array.shape[-1],
        traditional=paired,
        base=None,
        scale=1.0,
        offset=offset,
        freqs=_FREQUENCIES[inverse],
    )


def _args(value: Value) -> tuple[Any, ...]:
    assert value.call is not None
    return value.call.args


def _factors(value: Any) -> list[tuple[Value, Value]]:
    if not called(value, mx.multiply):
        return []
    a, b = _args(value)
    return [(a, b), (b, a)] if isinstance(a, Value) and isinstance(b, Value) else []


def _angles_of(value: Value, function: Any, like: Value) -> Value | None:
    """What the cosine or sine is of: (..., length, width), all other axes of extent 1."""
    while called(value, mx.expand_dims, mx.broadcast_to, mx.reshape):
        value = _args(value)[0]
    if not called(value, function):
        return None
    angles: Value = _args(value)[0]
    shape = tuple(angles.array.shape)
    plain = angles.ndim >= 2 and shape[-2:] == tuple(like.array.shape[-2:])
    return angles if plain and all(n == 1 for n in shape[:-2]) else None


def _last_axis(value: Value, place: int) -> bool:
    assert value.call is not None
    given = value.call.args
    axis = value.call.kwargs.get("axis", given[place] if len(given) > place else 0)
    return isinstance(axis, int) and axis % value.ndim == value.ndim - 1


def _part(value: Any, x: Value, key: slice) -> bool:
    """Whether it is x at this part of its last axis."""
    if not called(value, operator.getitem) or _args(value)[0] is not x:
        return False
    given = _args(value)[1]
    given = given if isinstance(given, tuple) else (given,)
    whole = all(k is Ellipsis or k == slice(None) for k in given[:-1])
    full = Ellipsis in given[:-1] or len(given) == x.ndim
    last = given[-1]
    if not isinstance(last, slice):
        return False
    size = x.array.shape[-1]
    return whole and full and last.indices(size) == key.indices(size)


def _rotated(value: Any, x: Value) -> bool | None:
    """Whether pairs are neighbours (True) or halves apart (False); None: no rotation of x."""
    width = x.array.shape[-1]
    half = width // 2
    if called(value, mx.concatenate) and _last_axis(value, 1) and len(_args(value)[0]) == 2:
        first, second = _args(value)[0]
        if not called(first, mx.negative):
            return None
        upper = _part(_args(first)[0], x, slice(half, width))
        return False if upper and _part(second, x, slice(0, half)) else None
    if called(value, mx.reshape, mx.flatten):
        stacked = _args(value)[0]
        if not called(stacked, mx.stack) or not _last_axis(stacked, 1):
            return None
        first, second = _args(stacked)[0]
        if not called(first, mx.negative) or stacked.ndim != x.ndim + 1:
            return None
        odd = _part(_args(first)[0], x, slice(1, width, 2))
        return True if odd and _part(second, x, slice(0, width, 2)) else None
    return None


def _frequencies(angles: Value, paired: bool) -> tuple[Value, int] | None:
    """Inverse frequencies (width / 2) and the first position of positions ⊗ frequencies."""
    if paired:
        if not called(angles, mx.repeat) or _args(angles)[1] != 2 or not _last_axis(angles, 2):
            return None
        half = _args(angles)[0]
    else:
        if not called(angles, mx.concatenate) or not _last_axis(angles, 1):
            return None
        parts = _args(angles)[0]
        if len(parts) != 2 or parts[0] is not parts[1]:
            return None
        half = parts[0]
    if called(half, mx.swapaxes) and called(_args(half)[0], mx.matmul):
        # (width / 2, 1) @ (1, length), turned
        inverse, positions = _args(_args(half)[0])
        if inverse.array.shape[-1] != 1:
            return None
        return _offset(positions, -1, inverse, half)
    if called(half, mx.outer):
        return _offset(_args(half)[0], -1, _args(half)[1], half)
    for positions, inverse in _factors(half):
        found = _offset(positions, -2, inverse, half)
        if found is not None:
            return found
    return None


def _offset(positions: Any, axis: int, inverse: Any, half: Value) -> tuple[Value, int] | None:
    found = known(positions)
    if not isinstance(found, Affine) or not isinstance(inverse, Value):
        return None
    wanted = [0] * positions.ndim
    wanted[axis] = 1
    while called(inverse, mx.expand_dims, mx.broadcast_to, mx.reshape):
        inverse = _args(inverse)[0]
    if list(found.coefficients) != wanted or inverse.ndim != 1 or inverse.dtype != mx.float32:
        return None
    return (inverse, found.constant) if inverse.array.shape[0] == half.array.shape[-1] else None
