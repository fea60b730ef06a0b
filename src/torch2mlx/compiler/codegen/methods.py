"""The body of one `__call__`: statements, local names, loops."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch2mlx.compiler.builder import Call, Value
from torch2mlx.compiler.codegen.blocks import Block, Item, known_symbols, within
from torch2mlx.compiler.codegen.expressions import (
    ATOM,
    Expression,
    ExpressionPrinter,
    is_runtime,
    literal,
)
from torch2mlx.compiler.codegen.loops import rolled
from torch2mlx.compiler.codegen.names import Names
from torch2mlx.compiler.codegen.statements import Nesting
from torch2mlx.compiler.codegen.tree import ModuleTree, local_name
from torch2mlx.compiler.layers import LayerUse
from torch2mlx.compiler.runtime.weights import weight_of

__all__ = ["Callee", "MethodWriter", "Places"]

_LONGEST_LINE = 92
"""Of a statement; it is indented in the class, and in loops."""

_VIEWS = frozenset(
    "reshape transpose swapaxes moveaxis expand_dims squeeze flatten unflatten broadcast_to astype "
    "contiguous".split()
)
"""What these return keeps the name of what they take."""


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
        names: what the original calls values.
        dtype: stands for whatever dtype the model is loaded in; None: dtypes are fixed.
        extents: dynamic extent that no input has → source of it in the root.
    """

    tree: ModuleTree
    weights: Mapping[int, str]
    callee: Callable[[Block], Callee]
    names: Names
    dtype: Any = None
    extents: Mapping[str, str] = field(default_factory=dict)


def _is_part_of_input(item: Item) -> bool:
    """Whether it takes a layer's cache, as in `cache[0]`: written where it is used."""
    if not isinstance(item.what, Call) or item.what.function is not operator.getitem:
        return False
    return item.outputs[0].name == "cache"


def _annotated(lines: list[str], origins: Mapping[str, str]) -> list[str]:
    """Statements with comments before them, each once in a row."""
    result: list[str] = []
    last = ""
    for line in lines:
        comment = origins.get(line, "")
        if comment and comment != last:
            result.append(comment)
        last = comment or last
        result.append(line)
    return result


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
        self.inputs = inputs
        self.printer = ExpressionPrinter(self._value, self._layer, self._dtype)
        self.own_dtype = ""
        self.dtypes = {id(v): v.dtype for item in block.items for v in item.outputs}
        self.taken = {"self", "mx", "nn", "math", *block.symbols}
        if places.dtype is not None:
            self.taken.add("dtype")
        for item in block.items:
            if isinstance(item.what, Call) and is_runtime(item.what.function):
                self.taken.add(item.what.function.__name__)
        self._begin(set(range(len(block.items))) if not pretty else set())

    def _begin(self, split: set[int]) -> None:
        """Start anew, with these items as statements of their own."""
        self.split = split
        self.bound: dict[int, Expression] = {}
        self.holders: dict[str, int] = {}
        for value, name in zip(self.block.inputs, self.inputs, strict=True):
            self.bound[id(value)] = (name, ATOM)
            self.holders.setdefault(name, id(value))
        self.nesting = Nesting(
            self.block, lambda v: self.places.names.of(self.block, v), self._fixed, split
        )

    def _fixed(self, item: Item) -> bool:
        """States are set before the return, so they are read before; a sequence is taken apart."""
        if isinstance(item.what, Call) and item.what.sequence:
            return True
        return any(self.places.weights.get(id(v)) in self.block.states for v in item.inputs)

    def write(self, result: Callable[[Callable[[Any], str]], str] | None = None) -> list[str]:
        """The statements.

        Args:
            result: writes what is returned, given the source of a value; None: the block's
                outputs.
        """
        while True:
            lines, long = self._statements(result)
            if long is None:
                return lines
            self._begin(self.split | {long})

    def _statements(
        self, result: Callable[[Callable[[Any], str]], str] | None
    ) -> tuple[list[str], int | None]:
        """The statements, and an item that makes one of them too long."""
        lines: list[str] = []
        texts: dict[int, str] = {}
        origins: dict[str, str] = {}
        for index, item in enumerate(self.block.items):
            text = self._call(item)
            texts[index] = text[0]
            if index in self.nesting.inlined or _is_part_of_input(item):
                self.bound[id(item.outputs[0])] = text
                continue
            names = []
            for value in item.outputs:
                if id(value) not in self.nesting.users:
                    names.append("_")
                    continue
                name = self._fresh(self._wanted(item, value, index), index)
                self.holders[name] = id(value)
                self.bound[id(value)] = (name, ATOM)
                names.append(name)
            if not names:
                lines.append(text[0])
            else:
                comma = "," if len(names) == 1 and self._several(item) else ""
                lines.append(f"{', '.join(names)}{comma} = {text[0]}")
            origins[lines[-1]] = self._origin(index)
            long = self._longest(lines[-1], index, texts)
            if long is not None:
                return lines, long
        if result is not None:
            returned = result(self.printer.argument)
        else:
            returned = ", ".join(self._value(v)[0] for v in self.block.outputs)
        last = [
            f"{self.places.tree.access(name, self.block.path)} = {self._value(value)[0]}"
            for name, value in self.block.states.items()
        ]
        if returned:
            last.append(f"return {returned}")
        if self.pretty:
            lines = rolled(lines, self.places.tree.lengths(self.block.path), "\n".join(last))
            lines = _annotated(lines, origins)
        lines += last
        return lines, self._longest(f"return {returned}", len(self.block.items), texts)

    def _origin(self, index: int) -> str:
        """A comment that names the line of the original, where MLX has no function for it."""
        items = [self.block.items[i] for i in (index, *self.nesting.inside(index))]
        composed = any(isinstance(i.what, Call) and is_runtime(i.what.function) for i in items)
        file, line = self.block.items[index].place
        return f"# {Path(file).name}:{line}" if composed and file else ""

    def _longest(self, line: str, index: int, texts: Mapping[int, str]) -> int | None:
        """What to take out of a statement that is too long."""
        if len(line) <= _LONGEST_LINE:
            return None
        inside = [i for i in self.nesting.inside(index) if not texts[i].isidentifier()]
        # Half of the line reads best; a part that is nearly all of it leaves it as long.
        return min(inside, key=lambda i: abs(len(texts[i]) - len(line) // 2), default=None)

    def extents(self) -> list[str]:
        """Statements that read dynamic extents off the inputs."""
        known = known_symbols(self.block.inputs)
        found: dict[int, dict[int, str]] = {}
        derived: list[str] = []
        for name in self.block.symbols:
            if name not in known:
                if name in self.places.extents and not self.block.path:
                    derived.append(f"{name} = {self.places.extents[name]}")
                continue
            position, axis, template = known[name]
            if template == "{}" and axis not in found.get(position, {}):
                found.setdefault(position, {})[axis] = name
                continue
            extent = f"{self.bound[id(self.block.inputs[position])][0]}.shape[{axis}]"
            derived.append(f"{name} = {template.format(extent)}")
        lines = []
        for position, names in found.items():
            text = self.bound[id(self.block.inputs[position])][0]
            count = len(names)
            if count > 1 and set(names) == set(range(count)):
                part = "" if count == self.block.inputs[position].ndim else f"[:{count}]"
                lines.append(f"{', '.join(names[i] for i in range(count))} = {text}.shape{part}")
            else:
                lines += [f"{name} = {text}.shape[{axis}]" for axis, name in names.items()]
        lines = lines + derived
        if self.own_dtype:
            lines.append(f"dtype = {self.own_dtype}.dtype")
        return lines

    def _dtype(self, value: Any) -> str | None:
        """Source of the dtype that the model is loaded in."""
        import mlx.core as mx

        model = self.places.dtype
        if model is None or not isinstance(value, mx.Dtype) or value != model:
            return None
        for given, name in zip(self.block.inputs, self.inputs, strict=True):
            if given.dtype == value and id(given) not in self.places.weights:
                self.own_dtype = name
                return "dtype"
        for name, holder in self.holders.items():
            if holder in self.dtypes and self.dtypes[holder] == value:
                return f"{name}.dtype"
        for inner in self.block.blocks():
            for item in inner.items:
                use = item.what.function if isinstance(item.what, Call) else None
                # Of norms, because quantization leaves them alone.
                if isinstance(use, LayerUse) and use.layer.class_name in ("RMSNorm", "LayerNorm"):
                    path = self.places.tree.access(use.layer.path, self.block.path)
                    return f"{path}.weight.dtype"
        raise KeyError(f"{self.block.path or 'the root'} casts to the model's dtype, and has none")

    def _several(self, item: Item) -> bool:
        """Whether a call with one output returns it in a tuple."""
        return isinstance(item.what, Call) and item.what.sequence

    def _wanted(self, item: Item, value: Value, index: int) -> str:
        """A name for a value, after the original."""
        if not self.pretty:
            return f"v{len(self.bound)}"
        names = self.places.names
        own = names.of(self.block, value)
        if own:
            name = local_name(own)
            short = index in self.split and not self._free(name, index)
            return "x" if short and self._free("x", index) else name
        candidates = [local_name(names.statements.get(id(value), "x"))]
        if isinstance(item.what, Call) and getattr(item.what.function, "__name__", "") in _VIEWS:
            candidates.insert(0, self.bound.get(id(item.inputs[0]), ("", 0))[0])
        fitting = (n for n in candidates if n.isidentifier() and self._free(n, index))
        return next(fitting, "x")

    def _free(self, name: str, index: int) -> bool:
        """Whether a name holds nothing that is needed after an item."""
        held = self.nesting.last_use.get(self.holders.get(name, 0), -1)
        return name not in self.taken and held <= index

    def _fresh(self, wanted: str, index: int) -> str:
        name, number = wanted, 2
        while not self._free(name, index):
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
            return self._weight(name), ATOM
        if value.call is None and not value.name:
            array = value.array
            return f"mx.array({literal(array.tolist())}, {literal(array.dtype)})", ATOM
        raise KeyError(f"a value of {self.block.path or 'the root'} is used before it is made")

    def _weight(self, name: str) -> str:
        """Source of a weight; of one that may be quantized, of what it stands for."""
        owner, _, leaf = name.rpartition(".")
        layer = self.places.tree.layer(owner)
        if leaf != "weight" or layer is None or layer.class_name not in ("Linear", "Embedding"):
            return self.places.tree.access(name, self.block.path)
        self.printer.runtime[weight_of.__name__] = weight_of
        return f"{weight_of.__name__}({self.places.tree.access(owner, self.block.path)})"

    def _layer(self, use: LayerUse) -> str:
        text = self.places.tree.access(use.layer.path, self.block.path)
        return f"{text}.{use.method}" if use.method else text
