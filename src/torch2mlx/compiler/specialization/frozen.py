"""Inputs that were read number by number become constants, with all that follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from torch2mlx.compiler.graph import (
    Expectation,
    Graph,
    Input,
    Node,
    Ref,
    TensorType,
    Weight,
    references,
    renamed,
    renamed_node,
    single_precision,
)
from torch2mlx.compiler.specialization.known_values import ALIKE
from torch2mlx.compiler.specialization.static_sizes import computed, sized
from torch2mlx.errors import CompileError

__all__ = ["frozen", "holds", "input_values"]

_SHARE = 4
"""An input is frozen where a question was asked for every fourth of its elements."""

_WRITTEN = 16
"""Elements of a frozen input that are written into the code; more become a constant."""


def frozen(
    graph: Graph, inputs: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor]
) -> tuple[Graph, dict[str, torch.Tensor]]:
    """The graph for the example's values of some integer inputs, and its new constants.

    Args:
        graph: with expectations.
        inputs: the example's tensors, by name.
        buffers: values that answers followed from, beside inputs.

    Raises:
        CompileError: sizes that neither constants nor a check of the values can give.
    """
    if not graph.expectations:
        return graph, {}
    roots = _roots(graph)
    asked = [(e, roots[e.value.name] & inputs.keys()) for e in graph.expectations]
    # What follows from buffers alone is as it was.
    asked = [(e, names) for e, names in asked if names]
    counted = {n.name for n in graph.nodes if n.target is torch.ops.aten.count_nonzero.default}
    read = [(e, set(names)) for e, names in asked if e.value.name not in counted]
    chosen = _chosen(read, inputs)
    values = {name: inputs[name] for name in chosen}
    known = _folded(graph, values, buffers, roots)
    left = [n for n in graph.nodes if n.target is sized() and n.name not in known]
    if left:
        raise CompileError(
            graph.class_name,
            [f"{n.origin}: the size of a result depends on values that are no input" for n in left],
        )
    nodes = [n for n in graph.nodes if n.name not in known]
    checks = [e for e, names in asked if not names <= chosen]
    checks = list({(e.value, str(e.answer)): e for e in checks}.values())
    needed = [(n.args, n.kwargs) for n in nodes]
    last = [graph.outputs, graph.states, [e.value for e in checks]]
    used = set(references([*needed, *last]))
    constants, names = _constants(used, known, graph)
    at_start = []
    for name in (i.name for i in graph.inputs if i.name in chosen):
        answer: Any = inputs[name].tolist()
        if inputs[name].numel() > _WRITTEN:
            constant = f"expected_{name}"
            constants[constant] = inputs[name].clone()
            answer = Ref(constant)
        at_start.append(Expectation(Ref(name), answer, name))
    weights = [
        Weight(name, TensorType(single_precision(v.dtype), tuple(v.shape)), "constant")
        for name, v in constants.items()
    ]
    made = replace(
        graph,
        weights=(*graph.weights, *weights),
        nodes=tuple(renamed_node(n, names) for n in nodes),
        outputs=tuple(renamed(list(graph.outputs), names)),
        states={k: renamed(v, names) for k, v in graph.states.items()},
        expectations=(*at_start, *checks),
    )
    return _without_dead(made), constants


def _chosen(
    asked: Sequence[tuple[Expectation, set[str]]], inputs: Mapping[str, torch.Tensor]
) -> set[str]:
    """Integer inputs that were read number by number."""
    chosen: set[str] = set()
    while True:
        counts: dict[str, int] = {}
        for expectation, names in asked:
            left = names - chosen
            if len(left) == 1:
                name = left.pop()
                counts[name] = counts.get(name, 0) + _numbers(expectation.answer)
        more = {
            name
            for name, count in counts.items()
            if not inputs[name].is_floating_point() and _SHARE * count >= inputs[name].numel()
        }
        if not more:
            return chosen
        chosen |= more


def _numbers(answer: Any) -> int:
    return sum(map(_numbers, answer)) if isinstance(answer, list) else 1


def _roots(graph: Graph) -> dict[str, frozenset[str]]:
    """Name → the inputs and weights that a value follows from."""
    given: tuple[Input | Weight, ...] = (*graph.inputs, *graph.weights)
    found = {one.name: frozenset([one.name]) for one in given}
    for node in graph.nodes:
        used = [found[r.name] for r in _needed(node)]
        found[node.name] = frozenset().union(*used)
    return found


def _needed(node: Node) -> list[Ref]:
    """What a node takes values of; of some tensors it takes no more than the shape."""
    args = node.args[1:] if node.target in ALIKE else node.args
    return list(references((args, node.kwargs)))


def _folded(
    graph: Graph,
    values: Mapping[str, torch.Tensor],
    buffers: Mapping[str, torch.Tensor],
    roots: Mapping[str, frozenset[str]],
) -> dict[str, Any]:
    """Node → its results, where it follows from these inputs, or must be known."""
    fixed = {k: v for k, v in buffers.items() if k not in graph.states}
    allowed = values.keys() | fixed.keys()
    wanted = {
        node.name
        for node in graph.nodes
        if (node.target is sized() or roots[node.name] & values.keys())
        and roots[node.name] <= allowed
        and torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ())
    }
    found = _evaluated(graph, wanted, {**fixed, **values})
    return {name: found[name] for name in wanted}


def _evaluated(
    graph: Graph, wanted: set[str], given: Mapping[str, torch.Tensor]
) -> dict[str, list[Any]]:
    """Results of nodes, and of all that they follow from, in PyTorch."""
    by_name = {node.name: node for node in graph.nodes}
    needed, queue = set(wanted), list(wanted)
    while queue:
        node = by_name[queue.pop()]
        for ref in _needed(node):
            if ref.name in by_name and ref.name not in needed:
                needed.add(ref.name)
                queue.append(ref.name)
    found: dict[str, list[Any]] = {name: [value] for name, value in given.items()}
    typed: tuple[Input | Weight, ...] = (*graph.inputs, *graph.weights)
    types: dict[Ref, Any] = {Ref(one.name): one.type for one in typed}
    types |= {Ref(n.name, i): kind for n in graph.nodes for i, kind in enumerate(n.results)}

    def value(argument: Any) -> Any:
        if isinstance(argument, Ref):
            return found[argument.name][argument.index]
        if isinstance(argument, list | tuple):
            return type(argument)(map(value, argument))
        return argument

    with torch.no_grad():
        for node in graph.nodes:
            if node.name not in needed:
                continue
            if node.target in ALIKE:
                kind = types[node.args[0]]
                like = torch.empty([int(n) for n in kind.shape], dtype=kind.dtype)
                args = [like, *value(list(node.args[1:]))]
            else:
                args = value(list(node.args))
            kwargs = {k: value(v) for k, v in node.kwargs.items()}
            if node.target is sized():
                result = computed(*args[:4])
            else:
                result = node.target(*args, **kwargs)
            found[node.name] = list(result) if node.several else [result]
    return found


def _constants(
    used: set[Ref], known: Mapping[str, Sequence[Any]], graph: Graph
) -> tuple[dict[str, torch.Tensor], dict[Ref, Ref]]:
    """Tensors that other nodes use, by the names that they get; and what they replace."""
    taken = {w.name for w in graph.weights} | {n.name for n in graph.nodes}
    constants: dict[str, torch.Tensor] = {}
    names: dict[Ref, Ref] = {}
    for ref in sorted(used, key=str):
        if ref.name not in known:
            continue
        name = f"fixed_{ref.name}" + (f"_{ref.index}" if ref.index else "")
        if graph.method != "forward":
            name = f"{name}_{graph.method}"
        while name in taken:
            name += "_"
        taken.add(name)
        value = known[ref.name][ref.index]
        constants[name] = value.to(single_precision(value.dtype)).contiguous().clone()
        names[ref] = Ref(name)
    return constants, names


def _without_dead(graph: Graph) -> Graph:
    """Only nodes and weights that results, states and checks need."""
    last = [graph.outputs, graph.states, [(e.value, e.answer) for e in graph.expectations]]
    wanted = {ref.name for ref in references(last)}
    kept = []
    for node in reversed(graph.nodes):
        if node.name in wanted:
            kept.append(node)
            wanted |= {ref.name for ref in references((node.args, node.kwargs))}
    return replace(graph, nodes=tuple(reversed(kept)))


def holds(
    graph: Graph, inputs: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor]
) -> bool:
    """Whether other inputs are among those that the graph was made for.

    Args:
        graph: with expectations.
        inputs: tensors by name; frozen ones as they were.
        buffers: buffers and constants by name.
    """
    made = {n.name for n in graph.nodes}
    checks = [e for e in graph.expectations if e.value.name in made]
    found = _evaluated(graph, {e.value.name for e in checks}, {**buffers, **inputs})
    return all(found[e.value.name][e.value.index].tolist() == e.answer for e in checks)


def input_values(graph: Graph, leaves: Sequence[Any]) -> dict[str, torch.Tensor]:
    """Input → its tensor among the leaves of a method's arguments."""
    tensors = [v for v in leaves if isinstance(v, torch.Tensor)]
    return dict(zip((i.name for i in graph.inputs), tensors, strict=True))
