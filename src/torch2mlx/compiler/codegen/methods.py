"""The body of one `__call__`: statements, local names, loops."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch2mlx.compiler.builder import Call, Value
from torch2mlx.compiler.codegen import source
from torch2mlx.compiler.codegen.blocks import Block, Item, known_symbols, within
from torch2mlx.compiler.codegen.expressions import (
    ATOM,
    Expression,
    ExpressionPrinter,
    is_runtime,
    literal,
)
from torch2mlx.compiler.codegen.loops import rolled
from torch2mlx.compiler.codegen.tree import ModuleTree, local_name
from torch2mlx.compiler.layers import LayerUse

__all__ = ["Callee", "MethodWriter", "Places", "source_hints"]

_LARGEST_EXPRESSION = 4


class Callee(Protocol):
    """How a block is called: its method's name and the order of its arguments."""

    method: str
    order: tuple[int, ...]


@dataclass(frozen=True)
class Places:
    """What a method refers to.

    Attributes:
        tree: attributes of the generated model.
        weights: id of a value → name of the weight.
        callee: how a block's class wants to be called.
        hints: id of a value → what the original calls it.
    """

    tree: ModuleTree
    weights: Mapping[int, str]
    callee: Callable[[Block], Callee]
    hints: Mapping[int, str] = field(default_factory=dict)


def source_hints(root: Block) -> dict[int, str]:
    """Id of a value → the variable that the original assigns it to."""
    hints: dict[int, str] = {}
    for block in root.blocks():
        groups = _Groups(block)
        for group in dict.fromkeys(groups.of):
            outputs = groups.live_outs(group)
            place = next(i.place for i, g in zip(block.items, groups.of, strict=True) if g == group)
            names = source.targets(*place)
            if outputs and len(names) == len(outputs):
                for value, name in zip(outputs, names, strict=True):
                    # What a module returns is named by its caller, who comes later.
                    hints[id(value)] = name
    return hints


class _Groups:
    """Which items come from one statement of the original."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.of: list[int] = []
        previous: Any = None
        number = -1
        called: dict[str, str] = {}
        for item in block.items:
            key = source.statement(*item.place) if item.place[0] else object()
            path = _callee_path(item)
            shape = re.sub(r"\d+", "#", path)
            # A container calls its modules in one statement; a loop, in one statement each.
            again = path and called.get(shape, path) != path and not item.chained
            if key != previous or again:
                number += 1
                called = {}
            if path:
                called[shape] = path
            previous = key
            self.of.append(number)

    def live_outs(self, group: int) -> list[Value]:
        """Values made in a group and used outside it."""
        block = self.block
        inside = [i for i, g in zip(block.items, self.of, strict=True) if g == group]
        others = {
            id(v) for i, g in zip(block.items, self.of, strict=True) if g != group for v in i.inputs
        }
        others |= {id(v) for v in (*block.outputs, *block.states.values())}
        return [v for i in inside for v in i.outputs if id(v) in others]


def _callee_path(item: Item) -> str:
    if isinstance(item.what, Block):
        return item.what.path
    function = item.what.function
    return function.layer.path if isinstance(function, LayerUse) else ""


def _same_loop(inner: Item, outer: Item) -> bool:
    """Whether both call generated classes that differ by an index: a loop says it better."""
    if not isinstance(inner.what, Block) or not isinstance(outer.what, Block):
        return False
    return re.sub(r"\d+", "#", inner.what.path) == re.sub(r"\d+", "#", outer.what.path)


def _reads_state(item: Item, block: Block, weights: Mapping[int, str]) -> bool:
    return any(weights.get(id(v)) in block.states for v in item.inputs)


class MethodWriter:
    """Writes the body of a block.

    Args:
        block: one call of a module.
        places: what names stand for.
        inputs: parameter names for `block.inputs`.
        pretty: with the original's names, nested expressions and loops; otherwise one
            statement an item with numbered names, which two equal layers share.
    """

    def __init__(
        self, block: Block, places: Places, inputs: list[str], pretty: bool = True
    ) -> None:
        self.block = block
        self.places = places
        self.pretty = pretty
        self.printer = ExpressionPrinter(self._value, self._layer)
        self.bound: dict[int, Expression] = {}
        self.holders: dict[str, int] = {}
        self.taken = {"self", "mx", "nn", "math", *block.symbols}
        for item in block.items:
            if isinstance(item.what, Call) and is_runtime(item.what.function):
                self.taken.add(item.what.function.__name__)
        for value, name in zip(block.inputs, inputs, strict=True):
            self.bound[id(value)] = (name, ATOM)
            self.holders.setdefault(name, id(value))
        self.groups = _Groups(block)
        self._plan()

    def _plan(self) -> None:
        """Decide which items are written inside the item that uses them, and last uses."""
        items, end = self.block.items, len(self.block.items)
        users: dict[int, list[int]] = {}
        for index, item in enumerate(items):
            for value in item.inputs:
                users.setdefault(id(value), []).append(index)
        for value in (*self.block.outputs, *self.block.states.values()):
            users.setdefault(id(value), []).append(end)
        self.inlined: set[int] = set()
        emitted = list(range(end + 1))
        size = [1] * (end + 1)
        groups = [*self.groups.of, self._return_group()]
        consumer: dict[int, int] = {}
        for index, item in enumerate(items if self.pretty else []):
            outputs = [v for v in item.outputs if id(v) in users]
            if len(item.outputs) != 1 or len(outputs) != 1:
                continue
            used = users[id(outputs[0])]
            if len(used) != 1 or groups[used[0]] != groups[index]:
                continue
            if _reads_state(item, self.block, self.places.weights):
                continue  # states are set before the return
            if used[0] < end and _same_loop(item, items[used[0]]):
                continue
            if size[used[0]] + size[index] <= _LARGEST_EXPRESSION:
                size[used[0]] += size[index]
                consumer[index] = used[0]
                self.inlined.add(index)
        for index in sorted(consumer, reverse=True):
            emitted[index] = emitted[consumer[index]]
        self.last_use = {
            value: max(emitted[index] for index in used) for value, used in users.items()
        }
        self.users = users

    def _target(self, index: int) -> str:
        """What the original assigns the statement of an item to, if to one variable."""
        place = self.block.items[index].place
        names = source.targets(*place) if place[0] else []
        return names[0] if len(names) == 1 else ""

    def _return_group(self) -> int:
        """The group of the return statement, if the last item is part of one."""
        if self.block.items and source.is_return(*self.block.items[-1].place):
            return self.groups.of[-1]
        return -1

    def write(self, result: Callable[[Callable[[Any], str]], str] | None = None) -> list[str]:
        """The statements.

        Args:
            result: writes what is returned, given the source of a value; None: the block's
                outputs.
        """
        lines: list[str] = []
        hints = self.places.hints if self.pretty else {}
        for index, item in enumerate(self.block.items):
            text = self._call(item)
            if index in self.inlined:
                self.bound[id(item.outputs[0])] = text
                continue
            names = []
            for value in item.outputs:
                if id(value) not in self.users:
                    names.append("_")
                    continue
                wanted = local_name(self._wanted(index, value, hints))
                name = self._fresh(wanted, index)
                self.holders[name] = id(value)
                self.bound[id(value)] = (name, ATOM)
                names.append(name)
            if not names:
                lines.append(text[0])
            else:
                comma = "," if len(names) == 1 and self._several(item) else ""
                lines.append(f"{', '.join(names)}{comma} = {text[0]}")
        if self.pretty:
            lines = rolled(lines, self.places.tree.lengths(self.block.path))
        for name, value in self.block.states.items():
            target = self.places.tree.access(name, self.block.path)
            lines.append(f"{target} = {self._value(value)[0]}")
        if result is not None:
            returned = result(self.printer.argument)
        else:
            returned = ", ".join(self._value(v)[0] for v in self.block.outputs)
        if returned:
            lines.append(f"return {returned}")
        return lines

    def extents(self) -> list[str]:
        """Statements that read dynamic extents off the inputs."""
        known = known_symbols(self.block.inputs)
        lines = []
        for name in self.block.symbols:
            if name in known:
                position, axis, template = known[name]
                extent = f"{self.bound[id(self.block.inputs[position])][0]}.shape[{axis}]"
                lines.append(f"{name} = {template.format(extent)}")
        return lines

    def _several(self, item: Item) -> bool:
        """Whether a call with one output returns it in a tuple."""
        return isinstance(item.what, Call) and item.what.sequence

    def _wanted(self, index: int, value: Value, hints: Mapping[int, str]) -> str:
        if not self.pretty:
            return f"v{len(self.bound)}"
        item = self.block.items[index]
        target = self._target(index) if item.chained else ""
        if id(value) in hints or target:
            return hints.get(id(value), target)
        path = _callee_path(item)
        if path:
            parts = [p for p in path.split(".") if not p.isdigit()]
            return parts[-1] if parts else "x"
        for given in item.inputs:
            # A value that is only reshaped or scaled keeps its name.
            name = self.bound.get(id(given), ("", 0))[0]
            if name.isidentifier() and len(item.outputs) == 1:
                return name
        return str(getattr(item.what.function, "__name__", "x"))  # type: ignore[union-attr]

    def _fresh(self, wanted: str, index: int) -> str:
        name, number = wanted, 2
        while name in self.taken or (
            name in self.holders and self.last_use.get(self.holders[name], -1) > index
        ):
            name = f"{wanted}_{number}"
            number += 1
        return name

    def _call(self, item: Item) -> Expression:
        if isinstance(item.what, Call):
            return self.printer.call(item.what)
        block = item.what
        callee = self.places.callee(block)
        target = self.places.tree.access(block.path, self.block.path)
        given = [self._value(block.inputs[i])[0] for i in callee.order]
        given += [f"{name}={name}" for name in block.passed]
        method = "" if callee.method == "__call__" else f".{callee.method}"
        return f"{target}{method}({', '.join(given)})", ATOM

    def _value(self, value: Value) -> Expression:
        if id(value) in self.bound:
            return self.bound[id(value)]
        name = self.places.weights.get(id(value))
        if name is not None and within(name, self.block.path):
            return self.places.tree.access(name, self.block.path), ATOM
        if value.call is None and not value.name:
            array = value.array
            return f"mx.array({literal(array.tolist())}, {literal(array.dtype)})", ATOM
        raise KeyError(f"a value of {self.block.path or 'the root'} is used before it is made")

    def _layer(self, use: LayerUse) -> str:
        text = self.places.tree.access(use.layer.path, self.block.path)
        return f"{text}.{use.method}" if use.method else text
