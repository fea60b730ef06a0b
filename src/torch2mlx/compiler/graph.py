"""A module's computation as data: what flows in, what is computed where, what comes out.

Nodes are ATen operators only; an int that depends on the input is a `SymbolicInt`; double precision
between inputs and outputs is single, as MLX has no other.  `reading` makes it of torch's program.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = [
    "Expectation",
    "Frame",
    "Graph",
    "Input",
    "Node",
    "Origin",
    "Ref",
    "TensorType",
    "Weight",
    "references",
    "renamed",
    "renamed_node",
    "single_precision",
    "verify",
]


@dataclass(frozen=True)
class TensorType:
    """Element type and shape; an extent that depends on the input is a `SymbolicInt`."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        extents = ", ".join(str(extent) for extent in map(repr, self.shape))
        return f"{str(self.dtype).removeprefix('torch.')}[{extents}]"


def single_precision(dtype: torch.dtype) -> torch.dtype:
    """Single precision for double; other types as they are."""
    import torch

    return {torch.float64: torch.float32, torch.complex128: torch.complex64}.get(dtype, dtype)


@dataclass(frozen=True)
class Frame:
    """One call of a module.

    Attributes:
        path: of the module ("layers.0").
        call: tells this call from others of the same module.
        class_name: with its package.
        file, line: what its `forward` was doing; "" and 0 if unknown.
    """

    path: str
    call: str
    class_name: str
    file: str = ""
    line: int = 0


@dataclass(frozen=True)
class Origin:
    """Where a node comes from.

    Attributes:
        frames: the calls it happened in, root first.
        file, line: of the statement in the innermost frame outside torch; "" and 0 if unknown.
    """

    frames: tuple[Frame, ...] = ()
    file: str = ""
    line: int = 0

    @property
    def path(self) -> str:
        return self.frames[-1].path if self.frames else ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.file else ""
        where = f"{self.path} ({self.frames[-1].class_name})" if self.path else ""
        return " ".join(filter(None, (where, place)))


@dataclass(frozen=True)
class Ref:
    """A tensor by name; `index` counts the results of a node."""

    name: str
    index: int = 0

    def __str__(self) -> str:
        return f"%{self.name}" if self.index == 0 else f"%{self.name}.{self.index}"


@dataclass(frozen=True)
class Input:
    """A tensor that the caller gives; `name` as export has it, flat over nested inputs."""

    name: str
    type: TensorType


@dataclass(frozen=True)
class Weight:
    """A parameter, buffer or constant.

    Attributes:
        name: qualified name; of tied ones the first whose module is called.
        type: its type.
        kind: "parameter", "buffer" or "constant".
        aliases: further names of the same tensor.
    """

    name: str
    type: TensorType
    kind: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Node:
    """One ATen operator.

    Attributes:
        name: unique.
        target: the `OpOverload`.
        args, kwargs: numbers, dtypes, strings, `Ref`s, and lists or tuples of these.
        results: a type for each result (None for one that is absent).
        several: the operator returns a tuple.
        origin: where it comes from.
    """

    name: str
    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    results: tuple[TensorType | None, ...]
    several: bool
    origin: Origin

    def __str__(self) -> str:
        given = [_text(a) for a in self.args]
        given += [f"{k}={_text(v)}" for k, v in self.kwargs.items()]
        types = ", ".join("None" if r is None else str(r) for r in self.results)
        origin = f"  # {self.origin}" if str(self.origin) else ""
        return f"%{self.name}: {types} = {self.target}({', '.join(given)}){origin}"


@dataclass(frozen=True)
class Expectation:
    """What a value must be; the graph was made for no other.

    Attributes:
        value: of an input, or of a node.
        answer: nested numbers, or a constant.
        what: names it in an error: an input, or a line of the original.
    """

    value: Ref
    answer: Any
    what: str


@dataclass(frozen=True)
class Graph:
    """A module's computation.

    Attributes:
        class_name: of the module.
        inputs: tensors given by the caller, flat.
        in_spec: pytree of (args, kwargs) over the flat inputs, constants among them.
        flat_inputs: for every leaf of `in_spec` an input's name, or a constant.
        argument_names: names of the top-level arguments, positional ones first.
        weights: parameters, buffers, constants; each once.
        nodes: in an order of execution.
        outputs: for every leaf of `out_spec` a `Ref`, a number or None.
        out_spec: pytree of what `forward` returns.
        states: buffer that the module changes → its new value.
        method: of the module that this is.
        expectations: checked on every call.
    """

    class_name: str
    inputs: tuple[Input, ...]
    in_spec: Any
    flat_inputs: tuple[Any, ...]
    argument_names: tuple[str, ...]
    weights: tuple[Weight, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Any, ...]
    out_spec: Any
    states: Mapping[str, Ref]
    method: str = "forward"
    expectations: tuple[Expectation, ...] = ()

    @property
    def frozen(self) -> tuple[str, ...]:
        """Inputs that must have the example's values."""
        names = {e.value.name for e in self.expectations}
        return tuple(i.name for i in self.inputs if i.name in names)

    def __str__(self) -> str:
        lines = [f"graph {self.class_name}"]
        lines += [f"  input %{i.name}: {i.type}" for i in self.inputs]
        for w in self.weights:
            tied = f" (also {', '.join(w.aliases)})" if w.aliases else ""
            lines.append(f"  {w.kind} %{w.name}: {w.type}{tied}")
        lines += [f"  {node}" for node in self.nodes]
        lines += [f"  state {name} = {ref}" for name, ref in self.states.items()]
        lines.append(f"  return {', '.join(_text(o) for o in self.outputs)}")
        return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        inner = ", ".join(map(_text, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    return str(value) if isinstance(value, Ref) else repr(value)


def references(value: Any) -> Iterator[Ref]:
    """Every `Ref` in an argument."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from references(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from references(item)


def renamed(value: Any, names: Mapping[Ref, Ref]) -> Any:
    """An argument with other `Ref`s in place of those that are named."""
    if isinstance(value, Ref):
        return names.get(value, value)
    if isinstance(value, list | tuple):
        return type(value)(renamed(v, names) for v in value)
    return value


def renamed_node(node: Node, names: Mapping[Ref, Ref]) -> Node:
    """A node with other arguments."""
    kwargs = {key: renamed(value, names) for key, value in node.kwargs.items()}
    return replace(node, args=renamed(node.args, names), kwargs=kwargs)


def verify(graph: Graph) -> None:
    """Check that names are unique and every reference is made before its use.

    Raises:
        ValueError: a pass broke the graph; the text names the node.
    """
    known: dict[str, int] = {}
    for name in [*(i.name for i in graph.inputs), *(w.name for w in graph.weights)]:
        if name in known:
            raise ValueError(f"%{name} is defined twice")
        known[name] = 1

    def check(value: Any, place: str) -> None:
        for ref in references(value):
            if ref.name not in known:
                raise ValueError(f"{place} uses %{ref.name} before it is made")
            if ref.index >= known[ref.name]:
                raise ValueError(f"{place} uses result {ref.index} of %{ref.name}, it has fewer")

    for node in graph.nodes:
        check((node.args, node.kwargs), f"%{node.name}")
        if node.name in known:
            raise ValueError(f"%{node.name} is defined twice")
        known[node.name] = len(node.results)
    check(graph.outputs, "return")
    check([(e.value, e.answer) for e in graph.expectations], "expectation")
    names = {w.name for w in graph.weights}
    for name, ref in graph.states.items():
        check(ref, f"state {name}")
        if name not in names:
            raise ValueError(f"state {name} is no buffer of the graph")
