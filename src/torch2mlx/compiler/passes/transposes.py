"""Transposes moved along the program until they meet their inverse.

Before: every convolution, pooling and normalisation turns its input to channels last and its
        result back.
After:  images stay channels last from the first such call to the last.

A transposed value is carried as its base and an order of axes.  Calls that can work on the base
do so, and their results are carried the same way; others get the transposed array, made where
the original made it, or in the closest module that encloses both ends.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from torch2mlx.compiler.builder import Builder, Call, Value
from torch2mlx.compiler.graph import Origin
from torch2mlx.compiler.passes.layouts import (
    along_axis,
    composed,
    identity,
    inverse,
    is_elementwise,
    is_layout,
    order_of,
    reduced,
    regrouped,
    subscripted,
)
from torch2mlx.compiler.passes.rewriting import (
    called,
    extents,
    is_symbolic,
    make,
    needed,
    same_call,
    substituted,
    users_of,
)
from torch2mlx.compiler.program import Program, Step, values_in
from torch2mlx.compiler.symbolic import source_of

__all__ = ["sink_transposes"]

_DEPTH = 8
"""How many calls ahead an inverse transpose is looked for."""


@dataclass(frozen=True, eq=False)
class _View:
    """`transpose(base, axes)`; `step` is where the original program has it."""

    base: Value
    axes: tuple[int, ...]
    step: int


def sink_transposes(program: Program) -> Program:
    """Compose transposes and move them past calls that do not depend on the order of axes."""
    return _Sinker(program).run()


class _Sinker:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.symbolic = is_symbolic(program)
        self.users = users_of(program.steps)
        self.views: dict[int, _View] = {}
        self.new: dict[int, Value] = {}
        self.made: dict[tuple[Any, ...], Value] = {}
        self.place: dict[int, int] = {}
        self.before: list[list[Step]] = [[] for _ in range(len(program.steps) + 1)]
        self.main: list[list[Step]] = [[] for _ in program.steps]
        self.after: list[list[Step]] = [[] for _ in program.steps]
        self.now = 0

    def run(self) -> Program:
        program = self.program
        for index, step in enumerate(program.steps):
            self.now = index
            if not self._sunk(step.call):
                self._kept(step)
        self.now = len(program.steps)
        outputs = tuple(substituted(o, self._plain) for o in program.outputs)
        states = {name: self._plain(v) for name, v in program.states.items()}
        steps: list[Step] = []
        for before, main, after in zip(self.before, self.main, self.after, strict=False):
            steps += [*before, *main, *after]
        steps += self.before[-1]
        steps = list(needed(steps, (*outputs, *states.values())))
        return replace(program, steps=tuple(steps), outputs=outputs, states=states)

    # Values

    def _view(self, value: Value) -> _View:
        """How a value of the original program is carried."""
        known = self.views.get(id(value))
        if known is not None:
            return known
        return _View(self.new.get(id(value), value), identity(value.ndim), -1)

    def _plain(self, value: Value) -> Value:
        """A value of the original program as an array."""
        view = self._view(value)
        if view.axes == identity(len(view.axes)):
            return view.base
        return self._transposed(view, value)

    def _carry(self, value: Value, base: Value, axes: tuple[int, ...]) -> None:
        """Carry a value of the original program as a transposed base."""
        if base.dims is None and value.dims is not None:
            base.dims = tuple(value.dims[axes.index(i)] for i in range(base.ndim))
        if axes == identity(len(axes)):
            self.new[id(value)] = base
        else:
            self.views[id(value)] = _View(base, axes, self.now)

    def _emit(self, value: Value) -> Value:
        """Add the call that makes a value, here."""
        assert value.call is not None
        self._add(self.main[self.now], value.call, self._origin(self.now), self.now)
        return value

    def _add(self, steps: list[Step], call: Call, origin: Origin, place: int) -> None:
        steps.append(Step(call, origin))
        for output in call.outputs:
            self.place[id(output)] = place

    def _origin(self, index: int) -> Origin:
        steps = self.program.steps
        if index < len(steps):
            return steps[index].origin
        return Origin(steps[-1].origin.frames[:1]) if steps else Origin()

    # Places

    def _calls(self, index: int) -> tuple[tuple[str, str], ...]:
        return tuple((f.path, f.call) for f in self._origin(index).frames)

    def _transposed(self, view: _View, value: Value | None) -> Value:
        """The transposed array: at the original's place if its user is in the same module."""
        consumer = self._calls(self.now)
        own = self._calls(view.step) if view.step >= 0 else ()
        producer = self._producer(view.base, consumer)
        if (
            value is not None
            and consumer[: len(own)] == own
            and (producer is None or producer[: len(own)] == own)
            and own
        ):
            key: tuple[Any, ...] = (id(view.base), view.axes, own, view.step)
            if key not in self.made:
                original = self.program.steps[view.step].call
                result = self._transpose(view, value, original)
                assert result.call is not None
                origin = self._origin(view.step)
                self._add(self.after[view.step], result.call, origin, view.step)
                self.made[key] = result
            return self.made[key]
        shared = consumer if producer is None else consumer[: _common(producer, consumer)]
        key = (id(view.base), view.axes, shared)
        if key not in self.made:
            result = self._transpose(view, value, None)
            assert result.call is not None
            index = self.now
            if len(shared) < len(consumer):
                inner = consumer[: len(shared) + 1]
                while index > 0 and self._calls(index - 1)[: len(inner)] == inner:
                    index -= 1
            origin = self._origin(self.now)
            if len(shared) < len(origin.frames):
                origin = replace(origin, frames=origin.frames[: len(shared)])
            target = self.main[index] if index == self.now < len(self.main) else self.before[index]
            self._add(target, result.call, origin, index)
            self.made[key] = result
        return self.made[key]

    def _producer(self, base: Value, consumer: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The module calls in which a value is made; None for a weight or a constant."""
        if id(base) in self.place:
            return self._calls(self.place[id(base)])
        return consumer[:1] if id(base) in self._inputs() else None

    def _inputs(self) -> set[int]:
        return {id(v) for v in self.program.inputs.values()}

    def _transpose(self, view: _View, value: Value | None, original: Call | None) -> Value:
        dims = None if value is None else value.dims
        if dims is None and view.base.dims is not None:
            dims = tuple(view.base.dims[a] for a in view.axes)
        if original is not None and order_of(original) == view.axes:
            call = same_call(original, (view.base, *original.args[1:]), original.kwargs)
            return call.outputs[0]
        moved = [i for i, a in enumerate(view.axes) if a != i]
        if len(moved) == 2:
            return make(mx.swapaxes, view.base, *moved, dims=dims)
        return make(mx.transpose, view.base, view.axes, dims=dims)

    # Calls

    def _kept(self, step: Step) -> None:
        call = step.call
        args, kwargs = substituted(call.args, self._plain), substituted(call.kwargs, self._plain)
        values = zip(values_in((args, kwargs)), values_in((call.args, call.kwargs)), strict=True)
        if any(a is not b for a, b in values):
            new = same_call(call, args, kwargs)
            for old, output in zip(call.outputs, new.outputs, strict=True):
                self.new[id(old)] = output
            call = new
        self._add(self.main[self.now], call, step.origin, self.now)

    def _sunk(self, call: Call) -> bool:
        """Carry the call's results on, if it can work on the base of what it is given."""
        axes = order_of(call)
        if axes is not None:
            view = self._view(call.args[0])
            self._carry(call.outputs[0], view.base, composed(view.axes, axes))
            return True
        carried = [self._view(v) for v in values_in((call.args, call.kwargs))]
        if not any(is_layout(v.axes) for v in carried):
            return False
        if is_elementwise(call):
            return self._elementwise(call)
        for rule in (self._joined, self._reduced, self._along, self._padded, self._subscripted):
            if rule(call):
                return True
        return self._regrouped(call)

    def _elementwise(self, call: Call) -> bool:
        result = call.outputs[0]
        rank = result.ndim
        given = list(values_in((call.args, call.kwargs)))
        views = {id(v): self._view(v) for v in given}
        orders = Counter(
            v.axes for v in views.values() if is_layout(v.axes) and len(v.axes) == rank
        )
        if not orders:
            return False
        axes, count = orders.most_common(1)[0]
        if not any(
            views[id(v)].axes == axes and tuple(v.array.shape) == tuple(result.array.shape)
            for v in given
        ):
            return False
        others = [v for v in given if views[id(v)].axes != axes]
        heavy = {id(v) for v in others if _filled(v) >= _filled(result) and not self._light(v)}
        if len(heavy) >= count and not self._wanted(result, axes, _DEPTH):
            return False

        def moved(value: Value) -> Value:
            view = views[id(value)]
            return view.base if view.axes == axes else self._arranged(value, axes)

        args, kwargs = substituted(call.args, moved), substituted(call.kwargs, moved)
        self._carry(result, self._emit(make(call.function, *args, **kwargs)), axes)
        return True

    def _light(self, value: Value) -> bool:
        """A weight or a constant: turning it costs next to nothing beside an image."""
        return value.call is None and id(value) not in self._inputs()

    def _wanted(self, value: Value, axes: tuple[int, ...], depth: int) -> bool:
        """Whether a later call undoes the order of axes."""
        for user in self.users.get(id(value), []):
            order = order_of(user)
            if order is not None and composed(axes, order) == identity(len(axes)):
                return True
            if (
                depth
                and is_elementwise(user)
                and user.outputs[0].ndim == len(axes)
                and self._wanted(user.outputs[0], axes, depth - 1)
            ):
                return True
        return False

    def _arranged(self, value: Value, axes: tuple[int, ...]) -> Value:
        """What broadcasts against a base as the value does against `transpose(base, axes)`."""
        rank = len(axes)
        filled = self._lengths(value)
        if filled is not None and not any(filled):
            return self._plain(value)
        back = inverse(axes)
        if filled is not None:
            filled = [False] * (rank - value.ndim) + filled
            kept = [back.index(i) for i, f in enumerate(filled) if f]
            if kept == sorted(kept):
                return self._respaced(self._plain(value), [filled[a] for a in back])
        if value.ndim == rank:
            view = self._view(value)
            order = composed(view.axes, back)
            if order == identity(rank):
                return view.base
            return self._transposed(_View(view.base, order, -1), None)
        missing = tuple(range(rank - value.ndim))
        expanded = self._emit(make(mx.expand_dims, self._plain(value), missing))
        return self._emit(make(mx.transpose, expanded, back))

    def _lengths(self, value: Value) -> list[bool] | None:
        """Which axes are longer than 1, for every size of the inputs; None if that is unknown."""
        shape = extents(value, self.symbolic)
        return None if shape is None else [n != "1" for n in shape]

    def _respaced(self, value: Value, filled: list[bool]) -> Value:
        """The value with its extents of 1 elsewhere; without leading ones."""
        while not filled[0]:
            filled = filled[1:]
        while called(value, mx.reshape, mx.expand_dims):
            assert value.call is not None
            source = value.call.args[0]
            if self._lengths(source) is None or _squeezed(source) != _squeezed(value):
                break
            value = source
        if self._lengths(value) == filled:
            return value
        if value.ndim == sum(filled):
            new = tuple(i for i, f in enumerate(filled) if not f)
            return self._emit(make(mx.expand_dims, value, new if len(new) > 1 else new[0]))
        known = iter(n for n in value.shape if source_of(n) != "1")
        size = tuple(next(known) if f else 1 for f in filled)
        return self._emit(make(mx.reshape, value, size, dims=size))

    def _joined(self, call: Call) -> bool:
        if call.function is not mx.concatenate:
            return False
        parts = call.args[0]
        views = [self._view(v) for v in parts]
        axes, count = Counter(v.axes for v in views if is_layout(v.axes)).most_common(1)[0]
        result = call.outputs[0]
        if 2 * count < len(parts) or (
            2 * count == len(parts) and not self._wanted(result, axes, _DEPTH)
        ):
            return False
        found = along_axis(call, axes)
        if found is None:
            return False
        moved = []
        for view in views:
            if view.axes == axes:
                moved.append(view.base)
            else:
                order = composed(view.axes, inverse(axes))
                moved.append(self._transposed(_View(view.base, order, -1), None))
        args, kwargs = found
        self._carry(result, self._emit(make(mx.concatenate, moved, *args[1:], **kwargs)), axes)
        return True

    def _first(self, call: Call) -> _View | None:
        """The view that a call of one array takes first."""
        if not call.args or not isinstance(call.args[0], Value):
            return None
        view = self._view(call.args[0])
        return view if is_layout(view.axes) else None

    def _one(
        self, call: Call, found: tuple[tuple[Any, ...], dict[str, Any], tuple[int, ...]] | None
    ) -> bool:
        """Call the function on the base, with other arguments; carry what it gives."""
        view = self._first(call)
        if view is None or found is None:
            return False
        args, kwargs, axes = found
        rest = substituted((args[1:], kwargs), self._plain)
        made = _make_all(call.function, view.base, *rest[0], **rest[1])
        new = made[0].call
        assert new is not None
        self._add(self.main[self.now], new, self._origin(self.now), self.now)
        for old, output in zip(call.outputs, made, strict=True):
            self._carry(old, output, axes)
        return True

    def _reduced(self, call: Call) -> bool:
        view = self._first(call)
        return view is not None and self._one(call, reduced(call, view.axes))

    def _along(self, call: Call) -> bool:
        view = self._first(call)
        if view is None or call.function is mx.concatenate:
            return False
        found = along_axis(call, view.axes)
        return found is not None and self._one(call, (*found, view.axes))

    def _padded(self, call: Call) -> bool:
        view = self._first(call)
        if view is None or call.function is not mx.pad or not isinstance(call.args[1], list):
            return False
        widths = [call.args[1][view.axes.index(i)] for i in range(len(view.axes))]
        args = (call.args[0], widths, *call.args[2:])
        return self._one(call, (args, call.kwargs, view.axes))

    def _subscripted(self, call: Call) -> bool:
        view = self._first(call)
        if view is None or call.function is not operator.getitem:
            return False
        return self._one(call, subscripted(call, view.axes))

    def _regrouped(self, call: Call) -> bool:
        view = self._first(call)
        if view is None:
            return False
        shape = extents(call.args[0], self.symbolic)
        return self._one(call, regrouped(call, view.axes, shape, self.symbolic))


def _make_all(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Value, ...]:
    """All results of a new call."""
    builder = Builder()
    builder.call(function, *args, **kwargs)
    return builder.calls[0].outputs


def _common(left: tuple[Any, ...], right: tuple[Any, ...]) -> int:
    count = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        count += 1
    return count


def _filled(value: Value) -> int:
    """The number of axes that are longer than 1."""
    return sum(n != 1 for n in value.array.shape)


def _squeezed(value: Value) -> list[str]:
    return [n for n in map(source_of, value.shape) if n != "1"]
