"""Torch's exported program, read as a graph.

Before: a `torch.export` program, whose shapes are symbols and whose ints are nodes.
After:  a `Graph`: ATen operators only, ints that depend on the input as `SymbolicInt`s, double
        precision between inputs and outputs as single.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch2mlx.compiler.graph import (
    Expectation,
    Graph,
    Input,
    Node,
    Ref,
    TensorType,
    Weight,
    single_precision,
    verify,
)
from torch2mlx.compiler.origins import module_path, origin_of, place
from torch2mlx.compiler.symbolic import SymbolicInt
from torch2mlx.errors import CompileError

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from torch2mlx.compiler.specialization import Question

__all__ = ["build_graph", "standing_names", "unknown_operators"]

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

    def place(self, node: Any) -> str:
        """A node's line, for a message."""
        return place(origin_of(node, self.method, self.class_name))

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
            place = self.place(self.current) if self.current is not None else "input"
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
            self.reasons.append(f"{self.place(node)}: {node.target} is control flow or no operator")
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
            origin_of(node, self.method, self.class_name),
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
            place = self.place(node)
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


def standing_names(programs: Iterable[ExportedProgram], tied: Mapping[str, str]) -> dict[str, str]:
    """Name of a tied parameter → the one that stands for all: the first whose module is called.

    Args:
        programs: everything that is compiled together.
        tied: name → the first name of the same tensor.
    """
    called = {
        module_path(path)
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

    dropped = (*_DROPPED, "aten::item", "aten::_local_scalar_dense")
    return list(
        dict.fromkeys(
            f"{place(origin_of(node, 'forward', ''))}: {node.target} has no lowering to MLX"
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
