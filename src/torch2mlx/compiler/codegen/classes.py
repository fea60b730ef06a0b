"""One class for every kind of module; equal modules share it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch2mlx.compiler.builder import Value
from torch2mlx.compiler.codegen import source
from torch2mlx.compiler.codegen.blocks import Block
from torch2mlx.compiler.codegen.constructors import (
    Child,
    Constructor,
    Hole,
    Items,
    Joined,
    Piece,
    Text,
    parameters_of,
)
from torch2mlx.compiler.codegen.expressions import literal
from torch2mlx.compiler.codegen.methods import MethodWriter, Places
from torch2mlx.compiler.codegen.names import Names
from torch2mlx.compiler.codegen.signature import arguments, named_tuples, result_source
from torch2mlx.compiler.codegen.tree import ModuleTree, Slot, local_name, method_name
from torch2mlx.compiler.graph import Weight
from torch2mlx.compiler.layers import Layer, all_options, argument_names
from torch2mlx.compiler.program import Program

__all__ = ["ClassWriter", "GeneratedClass"]


@dataclass(eq=False)
class _Method:
    """A method of a class, and the block that it was written from."""

    method: str
    order: tuple[int, ...]
    block: Block
    names: list[str]


@dataclass(eq=False)
class GeneratedClass:
    """A class of the generated model.

    Attributes:
        name: of the class.
        original: qualified name of the original's class.
        path: of one module of this class.
        init: statements that make its attributes.
        numbers: those in the statements, for every module of this class.
        blocks: calls of its modules.
    """

    name: str
    original: str
    path: str
    methods: dict[str, _Method]
    init: list[Piece]
    numbers: list[list[Hole]] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)

    def parameters(self) -> list[tuple[str, int]]:
        """Names of the constructor's parameters, and which number each stands for first."""
        return parameters_of(self.numbers)[0]


class ClassWriter:
    """Finds the classes of a program and writes them.

    Args:
        entries: every lowered program, and its root block from `partition`.
        tree: attributes of the generated model.
        dtype, extents: see `Places`.
    """

    def __init__(
        self,
        entries: Sequence[tuple[Program, Block]],
        tree: ModuleTree,
        dtype: Any = None,
        extents: Mapping[str, str] | None = None,
    ) -> None:
        self.programs = {id(root): program for program, root in entries}
        self.roots = [root for _, root in entries]
        self.weights = {n: v for program, _ in entries for n, v in program.weights.items()}
        self.tuples = {n for program, _ in entries for n in named_tuples(program.graph.out_spec)}
        self.tree = tree
        self.classes: dict[str, GeneratedClass] = {}
        self.by_path: dict[str, GeneratedClass] = {}
        self.method_of: dict[int, _Method] = {}
        self.runtime: dict[str, Any] = {}
        weights = {id(v): n for program, _ in entries for n, v in program.weights.items()}
        inputs = {
            id(v): local_name(name) for program, _ in entries for name, v in program.inputs.items()
        }
        self.imports: dict[str, str] = {}
        names = Names(self.roots, inputs, weights)
        self.places = Places(tree, weights, self._callee, names, dtype, extents or {})
        self._find()

    def _callee(self, block: Block) -> _Method:
        return self.method_of[id(block)]

    def _find(self) -> None:
        calls: dict[str, list[Block]] = {}
        last: dict[str, int] = {}
        for position, block in enumerate(b for root in self.roots for b in root.blocks()):
            calls.setdefault(block.path, []).append(block)
            last[block.path] = position
        # Inner modules first: longer paths, and a module before the one that contains it.
        for path in sorted(calls, key=lambda p: (p == "", -p.count("."), last[p])):
            self._assign(path, calls[path])

    def _assign(self, path: str, blocks: list[Block]) -> None:
        bodies = [self._canonical(block) for block in blocks]
        distinct = list(dict.fromkeys(bodies))
        original = blocks[0].frame.class_name
        init = self._init(path)
        key = "\n".join([original, *(piece.template() for piece in init), *distinct])
        made = self.classes.get(key)
        if made is None:
            methods = {}
            for number, body in enumerate(distinct):
                block = blocks[bodies.index(body)]
                name = "__call__" if number == 0 else f"call_{number + 1}"
                if id(block) in self.programs:
                    name = method_name(self.programs[id(block)].graph.method)
                order, names = self._parameters(block)
                methods[body] = _Method(name, order, block, names)
            made = GeneratedClass(self._class_name(original), original, path, methods, init)
            self.classes[key] = made
        made.numbers.append([hole for piece in init for hole in piece.holes()])
        made.blocks += blocks
        self.by_path[path] = made
        for block, body in zip(blocks, bodies, strict=True):
            self.method_of[id(block)] = made.methods[body]

    def _canonical(self, block: Block) -> str:
        names = [f"a{i}" for i in range(len(block.inputs))]
        writer = MethodWriter(block, self.places, names, pretty=False)
        lines = [*writer.extents(), *writer.write()]
        if id(block) in self.programs:  # entry points stay apart even if they do the same
            lines.append(self.programs[id(block)].graph.method)
        return "\n".join([", ".join([*names, *block.passed]), *lines])

    def _class_name(self, original: str) -> str:
        base = re.sub(r"\W", "_", original.rpartition(".")[2]) or "Model"
        taken = {c.name for c in self.classes.values()} | {"Path", *self.tuples}
        name, number = base, 2
        while name in taken:
            name, number = f"{base}{number}", number + 1
        return name

    def _parameters(self, block: Block) -> tuple[tuple[int, ...], list[str]]:
        """The order in which a block takes its inputs, and what it calls them."""
        if not block.path:
            return tuple(range(len(block.inputs))), []
        given = source.parameters(block.frame.file, block.frame.line)
        names = self.places.names.parameters[id(block)]
        order = sorted(
            range(len(names)),
            key=lambda i: (given.index(names[i]) if names[i] in given else len(given), i),
        )
        return tuple(order), names

    # Source of the classes

    def write(self) -> list[str]:
        """Source of every class, inner ones first."""
        return [self._class(c) for c in self.classes.values()]

    def _class(self, made: GeneratedClass) -> str:
        original = made.original.removeprefix("__main__.")
        doc = f'"""Port of `{original}`."""'
        lines = [f"class {made.name}(nn.Module):", f"    {doc}", ""]
        if made.init:
            parameters, sources = parameters_of(made.numbers)
            given = ", ".join(["self", *(name for name, _ in parameters)])
            lines += [f"    def __init__({given}):", "        super().__init__()"]
            numbers = iter(sources)
            lines += [f"        {piece.write(numbers)}" for piece in made.init]
            lines.append("")
        for method in made.methods.values():
            lines += [f"    {line}" if line else "" for line in self._method(made, method)]
            lines.append("")
        return "\n".join(lines).rstrip()

    def _method(self, made: GeneratedClass, method: _Method) -> list[str]:
        block = method.block
        if block.path:
            names, unpack = method.names, []
            parameters = [method.names[i] for i in method.order] + block.passed
            result = None
            documented = [(method.names[i], block.inputs[i]) for i in method.order]
        else:
            program = self.programs[id(block)]
            given = arguments(program.graph)
            local = {k: v for a in given for k, v in a.tensors.items()}
            names = [local[i.name] for i in program.graph.inputs]
            parameters = [a.name for a in given]
            unpack = [line for a in given for line in a.unpack]
            documented = list(zip(names, block.inputs, strict=False))
            if program.keys:
                key = "key" if "key" not in parameters else "random_key"
                unpack += _split(key, len(program.keys))
                names += _keys(key, len(program.keys))
                parameters.append(f"{key}=None")

            def result(write: Any) -> str:
                return result_source(program.graph.out_spec, program.outputs, write)

        writer = MethodWriter(block, self.places, names)
        body = writer.write(result)
        self.runtime |= writer.printer.runtime
        self.imports |= writer.printer.imports
        shapes = [f"{name} {_shape(value)}" for name, value in documented if value.name != "cache"]
        returned = ", ".join(_shape(v) for v in block.outputs)
        blocks = [b for b in made.blocks if self.method_of[id(b)] is method]
        lines = [f"def {method.method}({', '.join(['self', *parameters])}):"]
        if len({_shapes(b) for b in blocks}) == 1 and block.outputs:
            lines += _docstring(shapes, returned)
        return [*lines, *(f"    {line}" for line in [*unpack, *writer.extents(), *body])]

    def _init(self, path: str) -> list[Piece]:
        """Statements that make a module's attributes."""
        lines: list[Piece] = []
        frozen: list[str] = []
        self._attributes(self.tree.slot(path), "self", lines, frozen)
        if frozen:
            lines.append(Text(f"self.freeze(recurse=False, keys={literal(frozen)})"))
        return lines

    def _attributes(self, slot: Slot, text: str, lines: list[Piece], frozen: list[str]) -> None:
        for key, child in slot.children.items():
            target = f"{text}.{key}"
            lines.append(Joined((Text(f"{target} = "), self._constructor(child))))
            content = child.content
            if isinstance(content, Weight) and content.kind != "parameter" and text == "self":
                frozen.append(key)
            self._inside(child, target, lines, frozen)

    def _inside(self, slot: Slot, text: str, lines: list[Piece], frozen: list[str]) -> None:
        """Attributes of plain containers, which no class of their own makes."""
        if slot.content is not None:
            return
        if not slot.is_list:
            self._attributes(slot, text, lines, frozen)
            return
        for key, child in slot.children.items():
            self._inside(child, f"{text}[{key}]", lines, frozen)

    def _constructor(self, slot: Slot) -> Piece:
        content = slot.content
        if isinstance(content, Weight):
            value = self.weights[content.name]
            dtype = literal(value.dtype)
            extents = _numbers(tuple(value.array.shape), "size")
            model = self.places.dtype
            fixed = dtype != "mx.float32" and (model is None or value.dtype != model)
            end = f", {dtype})" if fixed else ")"
            return Joined((Text("mx.zeros("), extents, Text(end)))
        if isinstance(content, Layer):
            if content.module != "mlx.nn":
                self.imports[content.class_name] = content.module
            return _layer(content)
        if isinstance(content, str):
            kind = self.by_path[content]
            return Child(kind, tuple(h for piece in self._init(content) for h in piece.holes()))
        if not slot.is_list:
            return Text("nn.Module()")
        items: list[Piece] = [Text("nn.Identity()")] * (max(map(int, slot.children)) + 1)
        for key, child in slot.children.items():
            items[int(key)] = self._constructor(child)
        return Items(tuple(items))


def _keys(key: str, count: int) -> list[str]:
    """Source of the key of every random draw."""
    return [key] if count == 1 else [f"{key}s[{i}]" for i in range(count)]


def _split(key: str, count: int) -> list[str]:
    """Statements that make them; without a key MLX draws from its global state."""
    split = f"{key}s = [None] * {count} if {key} is None else mx.random.split({key}, {count})"
    return [split] if count > 1 else []


def _layer(layer: Layer) -> Piece:
    prefix = "nn." if layer.module == "mlx.nn" else ""
    return Constructor(
        f"{prefix}{layer.class_name}",
        tuple(_numbers(v, n) for v, n in zip(layer.args, argument_names(layer), strict=True)),
        tuple((k, _numbers(v, k), literal(usual)) for k, v, usual in all_options(layer)),
    )


def _numbers(value: Any, name: str) -> Piece:
    """A number or a tuple of numbers; anything else stays as it is."""
    if isinstance(value, tuple):
        parts: list[Piece] = [Text("(")]
        for item in value:
            parts += [_numbers(item, name), Text(", ")]
        if len(value) > 1:
            parts.pop()
        return Joined((*parts, Text(")")))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Text(literal(value))
    return Hole(value, name)


def _shape(value: Value) -> str:
    extents = ", ".join(str(n) if type(n) is int else repr(n) for n in value.shape)
    return f"[{extents}]"


def _shapes(block: Block) -> str:
    return " ".join(_shape(v) for v in (*block.inputs, *block.outputs))


def _docstring(shapes: list[str], returned: str) -> list[str]:
    text = f"{', '.join(shapes)} → {returned}"
    if len(text) <= 80:
        return [f'    """{text}."""']
    lines = ['    """Shapes:', ""]
    lines += [f"        {shape}" for shape in shapes]
    return [*lines, f"        → {returned}", '    """']
