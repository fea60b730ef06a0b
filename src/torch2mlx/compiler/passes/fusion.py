"""Spelled-out normalisation, attention and activations as the functions that MLX has for them.

Only spellings that compute the same in every dtype they are matched in: where a model rounds to
half precision between two steps that MLX takes at once, the steps stay.
"""

from __future__ import annotations

import operator
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from torch2mlx.compiler.builder import Value
from torch2mlx.compiler.passes.causality import hides_nothing, is_causal
from torch2mlx.compiler.passes.rewriting import (
    called,
    extents,
    is_floating,
    is_number,
    is_symbolic,
    make,
    rewritten,
)
from torch2mlx.compiler.passes.rotary import rotary
from torch2mlx.compiler.program import Program, Step, values_in
from torch2mlx.compiler.runtime import attention, pointwise, reductions

__all__ = ["fuse"]


def fuse(program: Program) -> Program:
    """Use `mx.fast` and `mlx.nn` where they compute the same."""
    symbolic = is_symbolic(program)

    def rule(step: Step, steps: list[Step]) -> Value | None:
        call = step.call
        if len(call.outputs) != 1 or call.sequence:
            return None
        result = call.outputs[0]
        for pattern in (_activation, _layer_norm, _rms_norm, rotary):
            new = pattern(result)
            if new is not None:
                break
        else:
            new = _attention(result, symbolic)
        if new is None:
            return None
        if new.call is not None and new.array.shape != result.array.shape:
            return None
        if new.dtype != result.dtype:
            return None
        present = {id(s.call) for s in steps}
        for value in values_in((new.call.args, new.call.kwargs)) if new.call is not None else ():
            # What a pattern makes of earlier values belongs where those are made.
            if value.call is not None and id(value.call) not in present:
                sources = {id(v) for v in values_in((value.call.args, value.call.kwargs))}
                at = next(
                    i
                    for i, s in enumerate(steps)
                    if sources & {id(v) for v in values_in((s.call.args, s.call.kwargs))}
                )
                steps.insert(at, Step(value.call, steps[at].origin))
        if new.call is not None and id(new.call) not in present:
            steps.append(Step(new.call, step.origin))
        return new

    return rewritten(program, rule)


def _args(value: Value) -> tuple[Any, ...]:
    assert value.call is not None
    return value.call.args


def _kwargs(value: Value) -> dict[str, Any]:
    assert value.call is not None
    return value.call.kwargs


def _pair(value: Any, function: Any) -> list[tuple[Any, Any]]:
    """The arguments of a commutative call, in both orders."""
    if not called(value, function) or len(_args(value)) != 2:
        return []
    a, b = _args(value)
    return [(a, b), (b, a)]


# Activations


def _activation(y: Value) -> Value | None:
    nn_functions: Any = nn
    if called(y, mx.maximum):
        for x, zero in _pair(y, mx.maximum):
            if isinstance(x, Value) and is_number(zero) and zero == 0 and is_floating(x):
                return make(nn_functions.relu, x)
    if called(y, pointwise.silu) and is_floating(_args(y)[0]):
        return make(nn_functions.silu, _args(y)[0])
    for x, gate in _pair(y, mx.multiply):
        if called(gate, mx.sigmoid) and _args(gate)[0] is x:
            return make(nn_functions.silu, x)
    # In half precision those of MLX round between their steps, torch does not.
    if y.dtype != mx.float32:
        return None
    if called(y, pointwise.gelu):
        return make(nn_functions.gelu, _args(y)[0])
    if called(y, pointwise.gelu_tanh):
        return make(nn_functions.gelu_approx, _args(y)[0])
    if called(y, pointwise.softplus) and _args(y)[1:] in ((1, 20), (1.0, 20.0), ()):
        return make(nn_functions.softplus, _args(y)[0])
    return None


# Normalisation


def _mean(value: Any) -> Any:
    """What is averaged over the last axis, which stays; None if that is not what happens."""
    if not called(value, mx.mean) or not _kwargs(value).get("keepdims"):
        return None
    axis = _kwargs(value).get("axis", _args(value)[1] if len(_args(value)) > 1 else None)
    x = _args(value)[0]
    if isinstance(axis, tuple | list) and len(axis) == 1:
        axis = axis[0]
    return x if isinstance(axis, int) and axis % x.ndim == x.ndim - 1 else None


def _squared(value: Any) -> Any:
    if called(value, mx.square):
        return _args(value)[0]
    if called(value, mx.power) and is_number(_args(value)[1]) and _args(value)[1] == 2:
        return _args(value)[0]
    if called(value, mx.multiply) and _args(value)[0] is _args(value)[1]:
        return _args(value)[0]
    return None


def _with_eps(value: Any) -> tuple[Any, float] | None:
    for statistic, eps in _pair(value, mx.add):
        if isinstance(statistic, Value) and is_number(eps):
            return statistic, float(eps)
    return None


def _over_root(y: Any) -> tuple[Value, Any, float] | None:
    """(x, statistic, eps) of x / √(statistic + eps)."""
    if called(y, mx.divide) and called(_args(y)[1], mx.sqrt):
        found = _with_eps(_args(_args(y)[1])[0])
        return (_args(y)[0], *found) if found and isinstance(_args(y)[0], Value) else None
    for x, inverse in _pair(y, mx.multiply):
        inside = None
        if called(inverse, mx.rsqrt):
            inside = _args(inverse)[0]
        elif called(inverse, mx.power) and is_number(_args(inverse)[1]):
            inside = _args(inverse)[0] if _args(inverse)[1] == -0.5 else None
        elif called(inverse, mx.reciprocal) and called(_args(inverse)[0], mx.sqrt):
            inside = _args(_args(inverse)[0])[0]
        found = _with_eps(inside)
        if found and isinstance(x, Value):
            return (x, *found)
    return None


def _vector(value: Any, like: Value) -> bool:
    """Whether it is one number for each place of the last axis, in the same type."""
    return (
        isinstance(value, Value)
        and value.ndim == 1
        and value.array.shape[0] == like.array.shape[-1]
        and like.array.shape[-1] > 1
        and value.dtype == like.dtype
    )


def _rms_norm(y: Value) -> Value | None:
    found = _over_root(y)
    if found is not None:
        x, statistic, eps = found
        if x.dtype == mx.float32 and _squared(_mean(statistic)) is x:
            return make(mx.fast.rms_norm, x, None, eps)
    if called(y, mx.astype) and called(_args(y)[0], mx.fast.rms_norm):
        # The result is rounded once, to the type that x had before.
        x, weight, eps = _args(_args(y)[0])
        if weight is None and called(x, mx.astype) and _args(x)[0].dtype == y.dtype:
            return make(mx.fast.rms_norm, _args(x)[0], None, eps)
    for normalized, weight in _pair(y, mx.multiply):
        if called(normalized, mx.fast.rms_norm) and _vector(weight, normalized):
            x, none, eps = _args(normalized)
            if none is None:
                return make(mx.fast.rms_norm, x, weight, eps)
    return None


def _layer_norm(y: Value) -> Value | None:
    if y.dtype != mx.float32:
        return None
    found = _over_root(y)
    if found is not None:
        centred, variance, eps = found
        if called(centred, mx.subtract):
            x, mean = _args(centred)
            spread = _squared(_mean(variance)) is centred or _variance(variance) is x
            if isinstance(x, Value) and _mean(mean) is x and spread:
                return make(mx.fast.layer_norm, x, None, None, eps)
    for normalized, weight in _pair(y, mx.multiply):
        if called(normalized, mx.fast.layer_norm) and _vector(weight, normalized):
            x, *given, eps = _args(normalized)
            if given == [None, None]:
                return make(mx.fast.layer_norm, x, weight, None, eps)
    for normalized, bias in _pair(y, mx.add):
        if called(normalized, mx.fast.layer_norm) and _vector(bias, normalized):
            x, weight, none, eps = _args(normalized)
            if none is None:
                return make(mx.fast.layer_norm, x, weight, bias, eps)
    return None


def _variance(value: Any) -> Any:
    """What the biased variance over the last axis is of."""
    if not called(value, mx.var, reductions.variance) or len(_args(value)) > 1:
        return None
    kwargs = dict(_kwargs(value))
    axis, keep = kwargs.pop("axis", None), kwargs.pop("keepdims", False)
    biased = ({}, {"ddof": 0}) if called(value, mx.var) else ({"correction": 0},)
    if not keep or kwargs not in biased:
        return None
    x = _args(value)[0]
    if isinstance(axis, tuple | list) and len(axis) == 1:
        axis = axis[0]
    return x if isinstance(axis, int) and axis % x.ndim == x.ndim - 1 else None


# Attention


def _attention(y: Value, symbolic: bool) -> Value | None:
    if called(y, attention.zero_masked_rows):
        # Where every query sees itself, no row is masked.
        x, mask = _args(y)
        narrow = _unbroadcast(mask)
        if hides_nothing(mask) or is_causal(mask, symbolic):
            return x if isinstance(x, Value) else None
        return make(attention.zero_masked_rows, x, narrow) if narrow is not mask else None
    if not called(y, mx.fast.scaled_dot_product_attention):
        return None
    q, k, v = _args(y)
    kwargs = dict(_kwargs(y))
    keys, values = _unrepeated(k, symbolic), _unrepeated(v, symbolic)
    if keys is not None and values is not None and keys[1] == values[1]:
        k, v = keys[0], values[0]
    mask = kwargs.get("mask")
    if isinstance(mask, Value):
        kwargs["mask"] = _unbroadcast(mask)
        if hides_nothing(mask):
            del kwargs["mask"]
        elif _covers(mask, q, k) and is_causal(mask, symbolic):
            kwargs["mask"] = "causal"
    if k is _args(y)[1] and kwargs.get("mask") is mask:
        return None
    return make(mx.fast.scaled_dot_product_attention, q, k, v, **kwargs)


def _covers(mask: Value, q: Value, k: Value) -> bool:
    return tuple(mask.array.shape[-2:]) == (q.array.shape[-2], k.array.shape[-2])


def _unbroadcast(mask: Value) -> Value:
    """A mask before it was broadcast, which attention does by itself."""
    if called(mask, mx.broadcast_to) and _args(mask)[0].ndim == mask.ndim:
        source: Value = _args(mask)[0]
        return source
    return mask


def _unrepeated(x: Value, symbolic: bool) -> tuple[Value, int] | None:
    """(heads, repeats), if every head of x stands there several times in a row."""
    if called(x, mx.repeat) and type(_args(x)[1]) is int:
        axis = _kwargs(x).get("axis", _args(x)[2] if len(_args(x)) > 2 else None)
        return (_args(x)[0], _args(x)[1]) if axis in (1, -3) else None
    if not called(x, mx.reshape):
        return None
    wide = _args(x)[0]
    if not called(wide, mx.broadcast_to) or wide.ndim != 5:
        return None
    narrow = _args(wide)[0]
    source = _inserted(narrow)
    if source is None or source.ndim != 4 or x.ndim != 4:
        return None
    shapes = [extents(v, symbolic) for v in (x, wide, source)]
    if any(s is None for s in shapes):
        return None
    flat, five, four = shapes
    assert flat is not None
    assert five is not None
    assert four is not None
    if (five[0], five[1], *five[3:]) != four or (flat[0], *flat[2:]) != (four[0], *four[2:]):
        return None
    count = wide.array.shape[2]
    static = five[1].isdigit() and five[2].isdigit() and flat[1].isdigit()
    return (source, count) if static and int(flat[1]) == int(five[1]) * count else None


def _inserted(x: Any) -> Value | None:
    """What got a new third axis."""
    if called(x, mx.expand_dims):
        axis = _kwargs(x).get("axis", _args(x)[1] if len(_args(x)) > 1 else None)
        if isinstance(axis, tuple | list) and len(axis) == 1:
            axis = axis[0]
        return _args(x)[0] if axis in (2, 2 - x.ndim) else None
    if called(x, operator.getitem):
        key = _args(x)[1]
        whole = slice(None)
        if isinstance(key, tuple) and key[:3] == (whole, whole, None):
            rest = all(k == whole or k is Ellipsis for k in key[3:])
            return _args(x)[0] if rest else None
    return None
