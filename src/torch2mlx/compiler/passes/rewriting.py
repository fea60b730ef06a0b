"""What passes share: calls with other arguments, and who uses a value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import mlx.core as mx

from torch2mlx.compiler.builder import Builder, Call, Value
from torch2mlx.compiler.program import Program, Step, values_in
from torch2mlx.compiler.symbolic import SymbolicInt, source_of

__all__ = [
    "called",
    "extents",
    "is_symbolic",
    "make",
    "needed",
    "rewritten",
    "same_call",
    "substituted",
    "users_of",
]


def called(value: Any, *functions: Any) -> bool:
    """Whether a value is the only result of one of these functions."""
    if not isinstance(value, Value) or value.call is None or value.call.sequence:
        return False
    return any(value.call.function is f for f in functions)


def make(
    function: Callable[..., Any], *args: Any, dims: tuple[int, ...] | None = None, **kwargs: Any
) -> Value:
    """The result of a new call."""
    value: Value = Builder().call(function, *args, **kwargs)
    if dims is not None:
        value.dims = dims
    return value


def same_call(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """The call with arguments of the same shapes and dtypes; the results' types stay."""
    new = Call(call.function, args, kwargs, sequence=call.sequence)
    new.outputs = tuple(Value(v.array, new, v.index, v.name, v.dims) for v in call.outputs)
    return new


def substituted(argument: Any, value: Callable[[Value], Any]) -> Any:
    """An argument with its values replaced; itself where none is."""
    if isinstance(argument, Value):
        return value(argument)
    if isinstance(argument, list | tuple):
        items = [substituted(a, value) for a in argument]
        unchanged = all(a is b for a, b in zip(items, argument, strict=True))
        return argument if unchanged else type(argument)(items)
    if isinstance(argument, slice):
        parts = [substituted(a, value) for a in (argument.start, argument.stop, argument.step)]
        return slice(*parts)
    if isinstance(argument, Mapping):
        return {k: substituted(a, value) for k, a in argument.items()}
    return argument


def users_of(steps: Iterable[Step]) -> dict[int, list[Call]]:
    """Id of a value → the calls that take it."""
    users: dict[int, list[Call]] = {}
    for step in steps:
        for value in values_in((step.call.args, step.call.kwargs)):
            users.setdefault(id(value), []).append(step.call)
    return users


def rewritten(program: Program, rule: Callable[[Step, list[Step]], Value | None]) -> Program:
    """The program with single results replaced.

    Args:
        program: what to rewrite.
        rule: given a step whose arguments are rewritten already, and a list to add new steps
            to, returns the value to use instead of the step's, or None.
    """
    replaced: dict[int, Value] = {}
    steps: list[Step] = []

    def current(value: Value) -> Value:
        return replaced.get(id(value), value)

    for step in program.steps:
        old = step.call
        args, kwargs = substituted(old.args, current), substituted(old.kwargs, current)
        changed = any(id(v) in replaced for v in values_in((old.args, old.kwargs)))
        if changed:
            step = Step(same_call(old, args, kwargs), step.origin)
            for before, after in zip(old.outputs, step.call.outputs, strict=True):
                replaced[id(before)] = after
        new = rule(step, steps) if step.call.outputs else None  # a check has no result
        if new is None:
            steps.append(step)
            continue
        if new.dims is None and new.call is not None:
            new.dims = old.outputs[0].dims
        replaced[id(old.outputs[0])] = new
    outputs = tuple(substituted(o, current) for o in program.outputs)
    states = {name: current(v) for name, v in program.states.items()}
    return replace(
        program,
        steps=needed(steps, (*outputs, *states.values())),
        outputs=outputs,
        states=states,
    )


def needed(steps: Iterable[Step], results: Iterable[Any]) -> tuple[Step, ...]:
    """The steps that the results depend on."""
    wanted = {id(v) for v in values_in(list(results))}
    kept: list[Step] = []
    for step in reversed(list(steps)):
        if not step.call.outputs or any(id(v) in wanted for v in step.call.outputs):
            kept.append(step)
            wanted |= {id(v) for v in values_in((step.call.args, step.call.kwargs))}
    return tuple(reversed(kept))


def is_symbolic(program: Program) -> bool:
    """Whether any input has a dynamic extent."""
    values = program.inputs.values()
    return any(isinstance(n, SymbolicInt) for v in values for n in v.dims or ())


def extents(value: Value, symbolic: bool) -> tuple[str, ...] | None:
    """The shape as source, so that equal ones are equal for all sizes; None if unknown."""
    if value.dims is None and symbolic and value.call is not None:
        return None
    return tuple(map(source_of, value.shape))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool | SymbolicInt)


def is_floating(value: Value) -> bool:
    return bool(mx.issubdtype(value.dtype, mx.floating))
