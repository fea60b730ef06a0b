"""Random numbers drawn from a key that the caller may give.

Before: mx.random.normal(shape)
After:  mx.random.normal(shape, key=key), where `key` is an argument of the model
"""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx

from torch2mlx.compiler.builder import Value
from torch2mlx.compiler.lowering.random import draws
from torch2mlx.compiler.passes.rewriting import same_call, substituted
from torch2mlx.compiler.program import Program, Step

__all__ = ["with_keys"]


def with_keys(program: Program) -> Program:
    """Give every call that draws a key of its own."""
    keys: list[Value] = []
    replaced: dict[int, Value] = {}

    def current(value: Value) -> Value:
        return replaced.get(id(value), value)

    steps = []
    for step in program.steps:
        old = step.call
        args, kwargs = substituted(old.args, current), dict(substituted(old.kwargs, current))
        if draws(old.function):
            keys.append(Value(mx.zeros((2,), mx.uint32), name="key"))
            kwargs["key"] = keys[-1]
        call = same_call(old, args, kwargs)
        replaced |= {id(a): b for a, b in zip(old.outputs, call.outputs, strict=True)}
        steps.append(Step(call, step.origin))
    if not keys:
        return program
    return replace(
        program,
        steps=tuple(steps),
        outputs=tuple(substituted(o, current) for o in program.outputs),
        states={name: current(v) for name, v in program.states.items()},
        keys=tuple(keys),
    )
