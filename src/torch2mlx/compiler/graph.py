"""A module's computation as data: what flows in, what is computed where, what comes out.

Before: a `torch.export` program, whose shapes are symbols and whose ints are nodes.
After:  nodes are ATen operators only; an int that depends on the input is a `SymbolicInt`;
        double precision between inputs and outputs has become single, as MLX has no other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch2mlx.compiler.symbolic import SymbolicInt
from torch2mlx.errors import CompileError

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from torch2mlx.compiler.specialization import Question

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
    "build_graph",
    "references",
    "single_precision",
    "standing_names",
    "unknown_operators",
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


_DROPPED = (
    "aten::_assert_tensor_metadata",
    "aten::_assert_scalar",
    "aten::_assert_async",
    "aten::sym_constrain_range",
    "aten::sym_constrain_range_for_size",
    "aten::sym_size",
    "aten::sym_stride",
    "aten::sym_numel",
    "aten::sym_storage_offset",
)
"""Checks of what export assumed, and ints that become `SymbolicInt`s."""


class _Reader:
    """Reads one program into a `Graph`, noting every reason why it cannot be."""

    def __init__(
        self,
        program: ExportedProgram,
        dimension_names: Mapping[str, str],
        method: str,
        questions: Sequence[Question] | None = None,
    ) -> None:
        self.program = program
        self.questions = questions
        self.names = dict(dimension_names)
        self.method = method
        self.class_name = ""
        self.current: Any = None  # the node that is read
        self.refs: dict[Any, Any] = {}
        self.reasons: list[str] = []

    def read(self, class_name: str, tied: Mapping[str, str]) -> Graph:
        from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind

        self.class_name = class_name
        nodes = {n.name: n for n in self.program.graph.nodes}
        inputs: list[Input] = []
        flat: list[Any] = []
        weights: dict[str, Weight] = {}
        kinds = {
            InputKind.PARAMETER: "parameter",
            InputKind.BUFFER: "buffer",
            InputKind.CONSTANT_TENSOR: "constant",
        }
        for spec in self.program.graph_signature.input_specs:
            if isinstance(spec.arg, ConstantArgument):
                flat.append(spec.arg.value)
                continue
            node = nodes[spec.arg.name]
            if spec.kind == InputKind.USER_INPUT:
                value = node.meta["val"]
                if not hasattr(value, "shape"):
                    self.reasons.append(f"input {node.name}: expected a tensor, found {value!r}")
                    continue
                inputs.append(Input(node.name, self.type(value)))
                flat.append(Ref(node.name))
                self.refs[node] = Ref(node.name)
            elif spec.kind in kinds:
                target = str(spec.target)
                name = tied.get(target, target)
                old = weights.get(name)
                aliases = (*(old.aliases if old else ()), *([target] if target != name else []))
                kind = old.kind if old else kinds[spec.kind]
                weights[name] = Weight(name, self.computed(node.meta["val"]), kind, aliases)
                self.refs[node] = Ref(name)
            else:
                self.reasons.append(f"input {spec.arg.name}: {spec.kind.name} is not supported")
        result = [n for n in map(self.node, self.program.graph.nodes) if n is not None]
        outputs: list[Any] = []
        states: dict[str, Ref] = {}
        specs = self.program.graph_signature.output_specs
        for number, out in enumerate(specs):
            if isinstance(out.arg, ConstantArgument):
                value = out.arg.value
            else:
                value = self.argument(nodes[out.arg.name])
                if number < len(specs) - len(self.questions or ()):
                    self.refuse_double(out.arg.name, nodes[out.arg.name].meta.get("val"))
            if out.kind == OutputKind.USER_OUTPUT:
                outputs.append(value)
            elif out.kind == OutputKind.BUFFER_MUTATION:
                target = str(out.target)
                states[tied.get(target, target)] = value
            elif out.kind == OutputKind.USER_INPUT_MUTATION:
                continue  # arrays of MLX are values: the caller's stays as it is
            else:
                self.reasons.append(f"output {value}: {out.kind.name} is not supported")
        if self.reasons:
            raise CompileError(class_name, list(dict.fromkeys(self.reasons)))
        call = self.program.call_spec
        out_spec, expectations = call.out_spec, []
        if self.questions is not None:  # the program returns (result, what was asked)
            asked = outputs[len(outputs) - len(self.questions) :]
            del outputs[len(outputs) - len(self.questions) :]
            out_spec = out_spec.children()[0]
            for question, value in zip(self.questions, asked, strict=True):
                if isinstance(value, Ref):
                    expectations.append(Expectation(value, question.answer, question.place))
        entry = self.program.module_call_graph[0].signature
        graph = Graph(
            class_name,
            tuple(inputs),
            call.in_spec,
            tuple(flat),
            tuple(entry.forward_arg_names or ()) if entry is not None else (),
            tuple(weights.values()),
            tuple(result),
            tuple(outputs),
            out_spec,
            states,
            self.method,
            tuple(expectations),
        )
        verify(graph)
        return graph

    def type(self, value: torch.Tensor) -> TensorType:
        return TensorType(value.dtype, tuple(self.integer(s) for s in value.shape))

    def computed(self, value: torch.Tensor) -> TensorType:
        """Type of a weight or intermediate result, which the caller does not see.

        The comparison with PyTorch decides whether single precision is enough.
        """
        return replace(self.type(value), dtype=single_precision(value.dtype))

    def refuse_double(self, name: str, value: Any) -> None:
        """A result keeps its type, and MLX computes in double precision on the CPU only."""
        dtype = getattr(value, "dtype", None)
        if dtype is not None and single_precision(dtype) != dtype:
            self.reasons.append(
                f"output {name}: dtype={dtype}: MLX does not compute in it; return "
                f"{single_precision(dtype)}"
            )

    def integer(self, value: Any) -> int:
        if isinstance(value, int):
            return value
        expression = value.node.expr
        if expression.is_Integer:
            return int(expression)
        hint = value.node.hint
        if hint is None:
            place = _place(self.origin(self.current)) if self.current is not None else "input"
            self.reasons.append(f"{place}: a size depends on the data ({expression})")
            hint = 1
        return SymbolicInt(int(hint), self.source(expression))

    def source(self, expression: Any) -> str:
        """Python source of a sympy expression, symbols by their dimension's name."""
        import sympy  # type: ignore[import-untyped]
        from torch.utils._sympy.printers import PythonPrinter

        renamed = expression.xreplace(
            {
                s: sympy.Symbol(self.names[s.name], integer=True, positive=True)
                for s in expression.free_symbols
                if s.name in self.names
            }
        )
        return str(PythonPrinter().doprint(renamed))

    def node(self, node: Any) -> Node | None:
        import operator

        import torch

        if node.op in ("placeholder", "output"):
            return None
        self.current = node
        value = node.meta.get("val")
        if node.op != "call_function":
            self.reasons.append(f"{node.name}: {node.op} {node.target} is not supported")
            return None
        if node.target is operator.getitem and node.args[0] in self.refs:
            whole = self.refs[node.args[0]]
            self.refs[node] = Ref(whole.name, node.args[1])
            return None
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool | int | float | bool):
            self._number(node, value)
            return None
        if not isinstance(node.target, torch._ops.OpOverload):
            place = self.origin(node)
            self.reasons.append(f"{_place(place)}: {node.target} is control flow or no operator")
            self.refs[node] = Ref(node.name)
            return None
        if node.target._schema.name in _DROPPED:
            return None
        several = isinstance(value, list | tuple)
        values = value if isinstance(value, list | tuple) else (value,)
        self.refs[node] = Ref(node.name)
        return Node(
            node.name,
            node.target,
            tuple(self.argument(a) for a in node.args),
            {k: self.argument(v) for k, v in node.kwargs.items()},
            tuple(None if v is None else self.computed(v) for v in values),
            several,
            self.origin(node),
        )

    def _number(self, node: Any, value: Any) -> None:
        """An int of the program; it lives on in the arguments that use it."""
        import torch

        # A symbol without an example value was read from a tensor's data.
        symbols = value.node.expr.free_symbols if hasattr(value, "node") else ()
        if any(s.name.startswith(("u", "zuf")) for s in symbols) and isinstance(
            node.target, torch._ops.OpOverload
        ):
            if _only_checked(node):
                return
            place = _place(self.origin(node))
            self.reasons.append(f"{place}: {node.target} makes a number out of a tensor's data")

    def argument(self, value: Any) -> Any:
        import torch

        if isinstance(value, torch.fx.Node):
            if value in self.refs:
                return self.refs[value]
            value = value.meta.get("val")
        if isinstance(value, torch.SymInt):
            return self.integer(value)
        if isinstance(value, torch.SymFloat):
            expression = value.node.expr
            if expression.is_number:
                return float(expression)
            self.reasons.append(f"a fraction depends on the input's size ({expression})")
            return 1.0
        if isinstance(value, list | tuple):
            items = [self.argument(v) for v in value]
            return tuple(items) if isinstance(value, tuple) else list(items)
        return single_precision(value) if isinstance(value, torch.dtype) else value

    def origin(self, node: Any) -> Origin:
        stack = node.meta.get("nn_module_stack") or {}
        trace = node.meta.get("stack_trace") or ""
        lines = _frame_lines(trace, len(stack), self.method)
        frames = []
        for (key, (path, kind)), place in zip(stack.items(), lines, strict=True):
            class_name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
            if class_name.startswith("torch.export._trace."):  # around a program without modules
                class_name = self.class_name
            clean = _clean(path)
            frames.append(Frame(clean, str(key), class_name, *place))
        file, line = _user_line(trace)
        return Origin(tuple(frames), file, line)


def single_precision(dtype: torch.dtype) -> torch.dtype:
    """Single precision for double; other types as they are."""
    import torch

    return {torch.float64: torch.float32, torch.complex128: torch.complex64}.get(dtype, dtype)


def _clean(path: Any) -> str:
    """A module's path; torch marks further calls of it with "@1"."""
    return ".".join(part.split("@")[0] for part in str(path).split("."))


def _frame_lines(trace: str, count: int, method: str) -> list[tuple[str, int]]:
    """What each module of the stack was doing: a trace has one `forward` for each, and the
    method for the root.
    """
    import re

    frames = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', trace)
    first = next((i for i, frame in enumerate(frames) if frame[2] == method), len(frames))
    found = [
        (file, int(line))
        for i, (file, line, function) in enumerate(frames)
        if i == first or (i > first and function == "forward")
    ]
    return found if len(found) == count else [("", 0)] * count


def _user_line(trace: str) -> tuple[str, int]:
    """File and line of the innermost frame outside torch."""
    import re
    from pathlib import Path

    import torch

    folder = str(Path(torch.__file__).parent)
    frames = re.findall(r'File "([^"]+)", line (\d+)', trace)
    for file, line in reversed(frames):
        if not file.startswith((folder, "<")):
            return file, int(line)
    return "", 0


def _place(origin: Origin) -> str:
    return str(origin) or "forward"


def standing_names(programs: Iterable[ExportedProgram], tied: Mapping[str, str]) -> dict[str, str]:
    """Name of a tied parameter → the one that stands for all: the first whose module is called.

    Args:
        programs: everything that is compiled together.
        tied: name → the first name of the same tensor.
    """
    called = {
        _clean(path)
        for program in programs
        for node in program.graph.nodes
        for path, _ in (node.meta.get("nn_module_stack") or {}).values()
    }
    groups: dict[str, list[str]] = {}
    for name, first in tied.items():
        groups.setdefault(first, [first]).append(name)
    result: dict[str, str] = {}
    for names in groups.values():
        chosen = next((n for n in names if n.rpartition(".")[0] in called), names[0])
        result |= dict.fromkeys(names, chosen)
    return result


def unknown_operators(program: ExportedProgram, known: Collection[Any]) -> list[str]:
    """Operators of a program that is no graph, beside those that are known, each with its line.

    Args:
        program: from `export_or_guess`.
        known: that have a lowering.
    """
    import torch

    reader = _Reader(program, {}, "forward")
    dropped = (*_DROPPED, "aten::item", "aten::_local_scalar_dense")
    return list(
        dict.fromkeys(
            f"{_place(reader.origin(node))}: {node.target} has no lowering to MLX"
            for node in program.graph.nodes
            if isinstance(node.target, torch._ops.OpOverload)
            and node.target not in known
            and node.target._schema.name not in dropped
        )
    )


def _only_checked(node: Any) -> bool:
    """Whether a number is read from data for checks alone, as `torch._check` does."""
    import torch

    numbers = torch.SymInt | torch.SymFloat | torch.SymBool | int | float | bool
    return all(
        getattr(getattr(user.target, "_schema", None), "name", "") in _DROPPED
        or (isinstance(user.meta.get("val"), numbers) and _only_checked(user))
        for user in node.users
    )


def build_graph(
    program: ExportedProgram,
    class_name: str = "Model",
    names: Mapping[str, str] | None = None,
    dimension_names: Mapping[str, str] | None = None,
    method: str = "forward",
    questions: Sequence[Question] | None = None,
) -> Graph:
    """Read a decomposed program.

    Args:
        program: from `export_module`.
        class_name: of the module.
        names: name of a parameter, buffer or constant in the program → the one to give it
            (see `standing_names`).
        dimension_names: torch's symbol ("s27") → the name to print ("batch").
        method: of the module that was exported.
        questions: that the example answered (see `specialization`), where the program returns
            what they were about beside its result.

    Raises:
        CompileError: control flow that depends on data, kinds of inputs without counterpart.
    """
    reader = _Reader(program, dimension_names or {}, method, questions)
    return reader.read(class_name, names or {})
