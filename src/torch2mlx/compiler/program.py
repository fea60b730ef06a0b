"""The computation as calls of MLX functions and layers: every node lowered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch2mlx.compiler.builder import Builder, Call, Value
from torch2mlx.compiler.graph import Graph, Input, Node, Origin, Ref, TensorType, Weight, references
from torch2mlx.compiler.layers import Layer, LayerUse, find_layers
from torch2mlx.compiler.lowering.registry import LoweringError, lowering_for, registered
from torch2mlx.compiler.lowering.types import mx_dtype
from torch2mlx.compiler.runtime.expectations import require
from torch2mlx.errors import CompileError
from torch2mlx.messages import first_line

__all__ = ["Program", "Step", "build_program", "build_programs", "values_in"]


@dataclass(frozen=True, eq=False)
class Step:
    """One call and the place in the module tree where it belongs."""

    call: Call
    origin: Origin


@dataclass(frozen=True, eq=False)
class Program:
    """A lowered graph.

    Attributes:
        graph: what was lowered.
        inputs, weights: values by name.
        steps: in an order of execution; each is needed for an output or a state.
        outputs: for every leaf of the graph's `out_spec` a Value, a number or None.
        states: buffer → its new value.
        keys: of random draws, one each, which the caller may give.
    """

    graph: Graph
    inputs: Mapping[str, Value]
    weights: Mapping[str, Value]
    steps: tuple[Step, ...]
    outputs: tuple[Any, ...]
    states: Mapping[str, Value]
    keys: tuple[Value, ...] = ()

    @property
    def layers(self) -> dict[str, Layer]:
        """Path → layer, for every layer that is called."""
        functions = (step.call.function for step in self.steps)
        return {f.layer.path: f.layer for f in functions if isinstance(f, LayerUse)}


def build_program(graph: Graph) -> Program:
    """Lower every node.

    Raises:
        CompileError: with all operators that have no counterpart, each with its line.
    """
    return build_programs([graph])[0]


def build_programs(graphs: Sequence[Graph]) -> list[Program]:
    """Lower every node of the methods of one module.

    A module becomes a layer of `mlx.nn` only if that suits every method that uses its weights.

    Raises:
        CompileError: with all operators that have no counterpart, each with its line.
    """
    reasons: dict[str, list[str]] = {}
    found = _common_layers([find_layers(graph) for graph in graphs], graphs)
    programs = [
        _Lowerer(g, matches, reasons).lower() for g, matches in zip(graphs, found, strict=True)
    ]
    if reasons:
        texts = []
        for reason, places in reasons.items():
            more = f" and {len(places) - 3} more" if len(places) > 3 else ""
            texts.append(f"{reason} — at {', '.join(places[:3])}{more}")
        raise CompileError(graphs[0].class_name, texts)
    return programs


def _common_layers(found: list[dict[str, Any]], graphs: Sequence[Graph]) -> list[dict[str, Any]]:
    """Layer calls without those whose weights another method needs in another form."""
    if len(found) == 1:
        return found
    refused: set[str] = set()
    owners = [{name.rpartition(".")[0] for name in _used_weights(graph)} for graph in graphs]
    chosen = [{m.use.layer.path: m.use.layer for m in matches.values()} for matches in found]
    for path in {path for layers in chosen for path in layers}:
        kinds = {
            layers.get(path) for layers, owned in zip(chosen, owners, strict=True) if path in owned
        }
        same = len(kinds) == 1 or not any(kind.axes for kind in kinds if kind is not None)
        if not same or len(kinds - {None}) > 1:
            refused.add(path)
    return [
        {name: m for name, m in matches.items() if m.use.layer.path not in refused}
        for matches in found
    ]


def _used_weights(graph: Graph) -> set[str]:
    values = [(node.args, node.kwargs) for node in graph.nodes]
    used = {ref.name for ref in references([values, graph.outputs])}
    return used & {w.name for w in graph.weights}


class _Lowerer:
    def __init__(
        self, graph: Graph, layers: Mapping[str, Any], reasons: dict[str, list[str]]
    ) -> None:
        self.graph = graph
        self.layers = layers
        self.builder = Builder()
        self.values: dict[str, tuple[Value | None, ...]] = {}
        self.reasons = reasons

    def lower(self) -> Program:
        graph = self.graph
        given: tuple[Input | Weight, ...] = (*graph.inputs, *graph.weights)
        for item in given:
            value = self.placeholder(item.type, f"%{item.name}")
            value.name = item.name
            self.values[item.name] = (value,)
        registered()  # a broken registry is no reason of the model
        origins: list[Origin] = []
        # Inputs are checked in the root, before any module is called.
        root = next((n.origin.frames[:1] for n in graph.nodes if n.origin.frames), ())
        for name in graph.frozen:
            self.expect(name)
        origins += [Origin(root)] * len(self.builder.calls)
        for node in graph.nodes:
            self.values[node.name] = self.node(node, self.layers.get(node.name))
            self.expect(node.name)
            origins += [node.origin] * (len(self.builder.calls) - len(origins))
        outputs = tuple(self.value(o) for o in graph.outputs)
        states = {name: self.value(ref) for name, ref in graph.states.items()}
        steps = [Step(c, o) for c, o in zip(self.builder.calls, origins, strict=True)]
        return Program(
            graph,
            {i.name: self.tensor(i.name) for i in graph.inputs},
            {w.name: self.tensor(w.name) for w in graph.weights},
            _needed(steps, (*outputs, *states.values())),
            outputs,
            states,
        )

    def expect(self, name: str) -> None:
        """Check what a value must be."""
        for one in self.graph.expectations:
            if one.value.name == name:
                args = (self.value(one.value), self.value(one.answer), one.what)
                self.builder.calls.append(Call(require, args, {}))

    def node(self, node: Node, layer: Any) -> tuple[Value | None, ...]:
        place = str(node.origin) or f"%{node.name}"
        start = len(self.builder.calls)
        try:
            if layer is not None:
                source = self.value(layer.input)
                given = (source, *map(self.value, layer.chosen))
                made: Any = layer.lower(self.builder, *given)
            else:
                function = lowering_for(node.target)
                args = self.value(list(node.args))
                made = function(
                    self.builder, *args, **{k: self.value(v) for k, v in node.kwargs.items()}
                )
            results = tuple(made) if isinstance(made, list | tuple) else (made,)
            padded = _padded(results, len(node.results))
            return tuple(map(self.finish, [node] * len(padded), padded, node.results))
        except LoweringError as error:
            self.fail(str(error), place)
        except (
            *(ValueError, TypeError, RuntimeError, IndexError, NotImplementedError),
            OverflowError,  # extents beyond 32 bits
        ) as error:
            self.fail(f"{node.target} could not be lowered: {first_line(error)}", place)
        # Go on with values of the right type, to find every reason in one run.
        del self.builder.calls[start:]
        return tuple(None if k is None else self.placeholder(k, place) for k in node.results)

    def finish(self, node: Node, value: Any, kind: TensorType | None) -> Value | None:
        """The result in the recorded dtype, its shape checked."""
        if kind is None or value is None:
            return None
        if tuple(value.array.shape) != tuple(int(s) for s in kind.shape):
            raise ValueError(
                f"the lowering gives shape {tuple(value.array.shape)}, torch {kind.shape}"
            )
        value = self.builder.cast(value, mx_dtype(kind.dtype))
        if value.dims is None:
            value.dims = kind.shape
        return value  # type: ignore[no-any-return]

    def placeholder(self, kind: TensorType, place: str) -> Value:
        import mlx.core as mx

        try:
            dtype = mx_dtype(kind.dtype)
        except LoweringError as error:
            self.fail(str(error), place)
            dtype = mx.float32
        return Value(mx.zeros([int(s) for s in kind.shape], dtype), dims=kind.shape)

    def fail(self, reason: str, place: str) -> None:
        places = self.reasons.setdefault(reason, [])
        if place not in places:
            places.append(place)

    def tensor(self, name: str) -> Value:
        value = self.values[name][0]
        assert value is not None
        return value

    def value(self, argument: Any) -> Any:
        if isinstance(argument, Ref):
            return self.values[argument.name][argument.index]
        if isinstance(argument, list | tuple):
            return type(argument)(self.value(a) for a in argument)
        return argument


def _padded(results: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """A lowering may leave out trailing results, which no inference program uses."""
    return results + (None,) * (count - len(results))


def values_in(argument: Any) -> Iterator[Value]:
    """Every value in a call's arguments."""
    if isinstance(argument, Value):
        yield argument
    elif isinstance(argument, list | tuple):
        for item in argument:
            yield from values_in(item)
    elif isinstance(argument, Mapping):
        for item in argument.values():
            yield from values_in(item)
    elif isinstance(argument, slice):
        yield from values_in([argument.start, argument.stop, argument.step])


def _needed(steps: list[Step], results: tuple[Any, ...]) -> tuple[Step, ...]:
    """The steps that the results depend on."""
    wanted = {id(v) for v in values_in(results)}
    kept: list[Step] = []
    for step in reversed(steps):
        if not step.call.outputs or any(id(v) in wanted for v in step.call.outputs):
            kept.append(step)
            wanted |= {id(v) for v in values_in((step.call.args, step.call.kwargs))}
    return tuple(reversed(kept))
