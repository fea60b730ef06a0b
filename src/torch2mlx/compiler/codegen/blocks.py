"""The program cut into calls of modules, as the original makes them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch2mlx.compiler.builder import Call, Value
from torch2mlx.compiler.codegen.expressions import symbols_in
from torch2mlx.compiler.graph import Frame
from torch2mlx.compiler.layers import LayerUse
from torch2mlx.compiler.program import Program, Step, values_in

__all__ = ["Block", "Item", "partition"]

_CONTAINERS = (
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.container.ModuleList",
    "torch.nn.modules.container.ModuleDict",
)


@dataclass(eq=False)
class Item:
    """A call, or a call of a module.

    Attributes:
        what: is called.
        place: line of the enclosing `forward`.
        chained: a container was called, and calls its modules one after the other.
    """

    what: Call | Block
    place: tuple[str, int]
    chained: bool = False

    @property
    def inputs(self) -> list[Value]:
        if isinstance(self.what, Block):
            return self.what.inputs
        return list(values_in((self.what.args, self.what.kwargs)))

    @property
    def outputs(self) -> list[Value]:
        return list(self.what.outputs)


@dataclass(eq=False)
class Block:
    """One call of one module.

    Attributes:
        frame: path, class and call.
        items: what it does, in order.
        inputs: values it takes; outputs: values it gives.
        symbols: names of dynamic extents that its own code uses or passes on.
        passed: those of `symbols` that no input's shape tells.
        states: buffers that it sets, with their new values.
    """

    frame: Frame
    items: list[Item] = field(default_factory=list)
    start: int = 0
    stop: int = 0
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    symbols: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    states: dict[str, Value] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return self.frame.path

    def blocks(self) -> Iterator[Block]:
        """This and everything inside, inner ones first."""
        for item in self.items:
            if isinstance(item.what, Block):
                yield from item.what.blocks()
        yield self


def within(name: str, path: str) -> bool:
    """Whether a name lies under a module's path."""
    return not path or name.startswith(f"{path}.")


def partition(program: Program, layers: Collection[str], dtype: Any = None) -> Block:
    """The call of the root module, with the calls it makes inside.

    Args:
        program: lowered.
        layers: paths of layers, also of those that only other programs call.
        dtype: a module that casts to it gets a value of that dtype, if none of its inputs is one.
    """
    root = _nest(program, _dissolved(program, layers))
    _Flow(program, dtype).fill(root)
    return root


def _dissolved(program: Program, layers: Collection[str]) -> set[str]:
    """Paths of modules whose code stays in their parent.

    Layers and containers; whatever has no weights and is torch's own or makes one call; and
    modules that call others which are not inside of them, as they have no name for these.
    """
    names = {id(v): name for name, v in program.weights.items()}
    classes: dict[str, str] = {}
    calls: dict[str, int] = {}
    owners: set[str] = set()
    for step in program.steps:
        function = step.call.function
        used = [
            names[id(v)] for v in values_in((step.call.args, step.call.kwargs)) if id(v) in names
        ]
        if isinstance(function, LayerUse):
            used.append(f"{function.layer.path}.weight")
        for frame in step.origin.frames:
            classes[frame.path] = frame.class_name
            calls[frame.path] = calls.get(frame.path, 0) + 1
            owners |= {frame.path for name in used if within(name, frame.path)}
    owners |= {path for path in classes for name in program.states if within(name, path)}
    result = set(layers)
    for path, class_name in classes.items():
        weightless = path not in owners and (class_name.startswith("torch.nn.") or calls[path] == 1)
        if class_name in _CONTAINERS or weightless:
            result.add(path)
    kept = classes.keys() - (result - set(layers))
    for frames in {step.origin.frames for step in program.steps}:
        for number, outer in enumerate(frames):
            inner = [f.path for f in frames[number + 1 :] if f.path in kept]
            if any(path != outer.path and not within(path, outer.path) for path in inner):
                result.add(outer.path)
    result.discard("")
    return result


def _nest(program: Program, dissolved: set[str]) -> Block:
    class_name = program.graph.class_name
    root = Block(Frame("", "", class_name))
    open_blocks = [root]
    for index, step in enumerate(program.steps):
        frames = [f for f in step.origin.frames if f.path not in dissolved and f.path]
        if step.origin.frames:
            first = step.origin.frames[0]
            if not root.frame.file and not first.path:
                root.frame = first
        if not step.origin.frames:
            depth = len(open_blocks)
        else:
            depth = 1
            for block, frame in zip(open_blocks[1:], frames, strict=False):
                if block.frame.call != frame.call or block.frame.path != frame.path:
                    break
                depth += 1
        del open_blocks[depth:]
        for frame in frames[depth - 1 :]:
            inner = Block(frame, start=index)
            open_blocks[-1].items.append(
                Item(inner, _place(step, open_blocks[-1]), _chained(step, frame.path))
            )
            open_blocks.append(inner)
        function = step.call.function
        path = function.layer.path if isinstance(function, LayerUse) else ""
        open_blocks[-1].items.append(
            Item(step.call, _place(step, open_blocks[-1]), _chained(step, path))
        )
        for block in open_blocks:
            block.stop = index + 1
    return root


def _place(step: Step, block: Block) -> tuple[str, int]:
    """What the block's `forward` was doing when the step happened."""
    for frame in step.origin.frames:
        if frame.path == block.path:
            return frame.file, frame.line
    return "", 0


def _chained(step: Step, path: str) -> bool:
    container = path.rpartition(".")[0]
    return bool(container) and any(
        f.path == container and f.class_name in _CONTAINERS for f in step.origin.frames
    )


class _Flow:
    """Finds what flows in and out of every block."""

    def __init__(self, program: Program, dtype: Any = None) -> None:
        self.program = program
        self.dtype = dtype
        self.end = len(program.steps)
        self.weights = {id(v): name for name, v in program.weights.items()}
        self.made: dict[int, int] = {}
        self.used: dict[int, list[int]] = {}
        for index, step in enumerate(program.steps):
            for value in step.call.outputs:
                self.made[id(value)] = index
            for value in values_in((step.call.args, step.call.kwargs)):
                self.used.setdefault(id(value), []).append(index)
        for value in values_in(program.outputs):
            self.used.setdefault(id(value), []).append(self.end)

    def fill(self, root: Block) -> None:
        self._place_states(root)
        for block in root.blocks():
            self._values(block, block is root)
            self._symbols(block)

    def _place_states(self, root: Block) -> None:
        """A buffer is set by the innermost module that has it, unless others still read it."""
        for name, value in self.program.states.items():
            old = self.used.get(id(self.program.weights[name]), [])
            made = self.made.get(id(value), -1)
            owner = root
            for block in root.blocks():
                inside = block.start <= made < block.stop and within(name, block.path)
                if inside and all(block.start <= use < block.stop for use in old):
                    owner = block
                    break
            owner.states[name] = value
            self.used.setdefault(id(value), []).append(max(owner.stop - 1, made))

    def _values(self, block: Block, is_root: bool) -> None:
        seen: set[int] = set()
        made: list[Value] = []
        for item in block.items:
            for value in item.inputs:
                if id(value) in seen or self._inside(value, block):
                    continue
                seen.add(id(value))
                block.inputs.append(value)
            for value in item.outputs:
                seen.add(id(value))
                made.append(value)
        for value in block.states.values():
            if id(value) not in seen and not self._inside(value, block):
                seen.add(id(value))
                block.inputs.append(value)
        if self.dtype is not None and not is_root and self._lacks_dtype(block):
            block.inputs += self._value_of_dtype(block.start)
        if is_root:
            block.inputs = [*self.program.inputs.values(), *self.program.keys]
            block.outputs = list(values_in(self.program.outputs))
        else:
            block.outputs = [
                v for v in made if any(use >= block.stop for use in self.used.get(id(v), []))
            ]

    def _value_of_dtype(self, start: int) -> list[Value]:
        """The last value of the model's dtype before a step that is still needed after it."""
        for step in reversed(self.program.steps[:start]):
            for value in step.call.outputs:
                used = self.used.get(id(value), [])
                if value.dtype == self.dtype and any(use >= start for use in used):
                    return [value]
        return []

    def _lacks_dtype(self, block: Block) -> bool:
        """Whether it casts to the model's dtype, and takes no value of it."""
        calls = [item.what for item in block.items if isinstance(item.what, Call)]
        given = [a for c in calls for a in (*c.args, *c.kwargs.values())]
        if not any(isinstance(a, type(self.dtype)) and a == self.dtype for a in given):
            return False
        taken = [v for v in block.inputs if id(v) not in self.weights]
        return all(v.dtype != self.dtype for v in taken)

    def _inside(self, value: Value, block: Block) -> bool:
        """A weight of the block's own module, or a constant that is written in place."""
        name = self.weights.get(id(value))
        if name is not None:
            return within(name, block.path)
        return value.call is None and not value.name

    def _symbols(self, block: Block) -> None:
        names: list[str] = []
        for item in block.items:
            inner = item.what
            names += (
                inner.passed if isinstance(inner, Block) else symbols_in((inner.args, inner.kwargs))
            )
        if not block.path:
            names += symbols_in(self.program.outputs)
        block.symbols = list(dict.fromkeys(names))
        known = known_symbols(block.inputs)
        block.passed = [n for n in block.symbols if n not in known] if block.path else []


def known_symbols(values: list[Value]) -> Mapping[str, tuple[int, int, str]]:
    """Symbol → which value and which of its axes tells it, and how to get it from the extent."""
    from torch2mlx.compiler.symbolic import SymbolicInt, solved

    found: dict[str, tuple[int, int, str]] = {}
    derived: dict[str, tuple[int, int, str]] = {}
    for position, value in enumerate(values):
        for axis, extent in enumerate(value.dims or ()):
            if isinstance(extent, SymbolicInt) and (known := solved(extent.expression)):
                name, template = known
                into = found if template == "{}" else derived
                into.setdefault(name, (position, axis, template))
    return {**derived, **found}
