"""Layers that repeat: two of each kind are traced, and the others are copies of these.

Following a model takes time in proportion to its layers, and nearly all of them are the same but
for their weights.

Before:  a model of 64 layers, of which 2 are traced; their graph
After:   the graph of all 64
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from torch2mlx.compiler.decoders.operators import operators
from torch2mlx.compiler.graph import (
    Graph,
    Node,
    Origin,
    Ref,
    Weight,
    references,
    renamed,
    renamed_node,
)
from torch2mlx.errors import UnsupportedError
from torch2mlx.verification.reference import decoder_layers

__all__ = ["Repetition", "find_repetition", "repeated", "shortened"]


@dataclass(frozen=True)
class Repetition:
    """What is known of a model's layers before it is traced.

    Attributes:
        path: of the list of layers.
        kinds: one for each layer; layers of one kind have the same modules, sizes and settings.
        traced: number of layers to trace: with them every kind has occurred twice, if it does.
    """

    path: str
    kinds: tuple[Hashable, ...]
    traced: int

    def template(self, layer: int) -> int:
        """The last traced layer of the same kind."""
        return max(i for i in range(self.traced) if self.kinds[i] == self.kinds[layer])


def find_repetition(model: Any) -> Repetition | None:
    """The layers of a model of transformers; None if nothing is saved by copying."""
    try:
        path, layers = decoder_layers(model)
    except UnsupportedError:
        return None
    depth = len(layers)
    # Lists that say something of each layer, such as `layer_types`.
    settings = [
        (key, value)
        for key, value in sorted(vars(model.config.get_text_config()).items())
        if isinstance(value, list | tuple) and len(value) == depth
    ]
    owners: dict[int, set[int]] = {}
    for i, layer in enumerate(layers):
        for parameter in layer.parameters():
            owners.setdefault(id(parameter), set()).add(i)
    shared = {key for key, where in owners.items() if len(where) > 1}
    kinds = tuple(
        (_kind(layer, i, shared), tuple((key, repr(value[i])) for key, value in settings))
        for i, layer in enumerate(layers)
    )
    needed = {kind: min(2, kinds.count(kind)) for kind in kinds}
    for traced in range(1, depth):
        if all(kinds[:traced].count(kind) >= count for kind, count in needed.items()):
            return Repetition(path, kinds, traced)
    return None


_NUMBERS = ("idx", "id", "index", "number")
"""Ends of names of attributes that number a layer."""


def _kind(layer: nn.Module, number: int, shared: set[int]) -> Hashable:
    """Everything that a layer's program could depend on."""
    found: list[Hashable] = []
    for path, module in layer.named_modules():
        found.append((path, type(module)))
        for name, value in sorted(vars(module).items()):
            if name.startswith("_") or not isinstance(value, _PLAIN):
                continue
            if type(value) is int and name.endswith(_NUMBERS) and value - number in (0, 1):
                value = ("number", value - number)
            found.append((name, repr(value)))
    for name, parameter in layer.named_parameters():
        tie = id(parameter) if id(parameter) in shared else None
        found.append((name, tuple(parameter.shape), parameter.dtype, tie))
    for name, buffer in layer.named_buffers():
        found.append((name, tuple(buffer.shape), buffer.dtype))
    return tuple(found)


_PLAIN = (bool, int, float, str, list, tuple, dict, type(None))


@contextmanager
def shortened(model: Any, repetition: Repetition) -> Iterator[None]:
    """The model with the layers alone that are traced."""
    parent, _, name = repetition.path.rpartition(".")
    owner = model.get_submodule(parent)
    layers = getattr(owner, name)
    setattr(owner, name, nn.ModuleList(list(layers)[: repetition.traced]))
    try:
        yield
    finally:
        setattr(owner, name, layers)


def repeated(graph: Graph, repetition: Repetition) -> Graph | None:
    """The graph of the whole model.

    None if copies would not be sure to be right: where traced layers of one kind differ in more
    than their weights, where more than one tensor goes from layer to layer, or where something
    happens between two layers.
    """
    return _Copier(graph, repetition).copied()


class _Copier:
    def __init__(self, graph: Graph, repetition: Repetition) -> None:
        self.graph = graph
        self.repetition = repetition
        self.layer_of: dict[str, int] = {}
        self.layers: list[list[Node]] = [[] for _ in range(repetition.traced)]
        for node in graph.nodes:
            number = self._number(node.origin)
            if number is not None:
                self.layer_of[node.name] = number
                self.layers[number].append(node)
        ops = operators()
        self.numbered = {
            ops.update.default: 3,
            ops.keep_columns.default: 2,
            ops.mamba2_scan.default: 2,
            ops.selective_scan.default: 2,
        }

    def copied(self) -> Graph | None:
        graph, traced = self.graph, self.repetition.traced
        depth = len(self.repetition.kinds)
        if not all(self.layers) or graph.states:
            return None
        positions = [i for i, n in enumerate(graph.nodes) if n.name in self.layer_of]
        start, stop = positions[0], positions[-1] + 1
        order = [self.layer_of.get(n.name, -1) for n in graph.nodes[start:stop]]
        if -1 in order or order != sorted(order):
            return None
        if not self._find_results() or not self._same_kinds():
            return None
        nodes = list(graph.nodes[:stop])
        before = self.results[-1]
        for i in range(traced, depth):
            made, before = self._copy(i, before)
            nodes += made
        last = {self.results[-1]: before}
        nodes += [renamed_node(node, last) for node in graph.nodes[stop:]]
        outputs = tuple(renamed(o, last) for o in graph.outputs)
        return replace(graph, nodes=tuple(nodes), outputs=outputs, weights=self._weights())

    def _number(self, origin: Origin) -> int | None:
        for frame in origin.frames:
            owner, _, leaf = frame.path.rpartition(".")
            if owner == self.repetition.path and leaf.isdigit():
                return int(leaf)
        return None

    def _prefix(self, layer: int) -> str:
        return f"{self.repetition.path}.{layer}."

    def _find_results(self) -> bool:
        """The one tensor that each layer gives, to the next one alone."""
        given: list[set[Ref]] = [set() for _ in self.layers]
        users = [(n, list(references((n.args, n.kwargs)))) for n in self.graph.nodes]
        for node, refs in users:
            own = self.layer_of.get(node.name, len(self.layers))
            for ref in refs:
                source = self.layer_of.get(ref.name)
                if source is None or source == own:
                    continue
                if source != own - 1:
                    return False
                given[source].add(ref)
        given[-1] |= {r for r in references(self.graph.outputs) if r.name in self.layer_of}
        if any(len(refs) != 1 for refs in given):
            return False
        self.results = [next(iter(refs)) for refs in given]
        return True

    def _same_kinds(self) -> bool:
        """Whether traced layers of one kind are the same program."""
        kinds = self.repetition.kinds
        for j, nodes in enumerate(self.layers):
            for node in nodes:
                place = self.numbered.get(node.target)
                if place is not None and node.args[place] != j:
                    return False
            i = self.repetition.template(j)
            if i == j:
                continue
            template = self._form(i, self.results[i - 1])
            # What the first layer takes is made by the embedding, nobody says by which node.
            entries = [self.results[j - 1]] if j else self._outside(nodes)
            if not any(self._form(j, entry) == template for entry in entries):
                return False
        repeats = {self.repetition.template(i) for i in range(len(self.layers), len(kinds))}
        prefixes = tuple(self._prefix(i) for i in repeats)
        return not any(
            w.kind == "constant" and w.name.startswith(prefixes) for w in self.graph.weights
        )

    def _outside(self, nodes: list[Node]) -> list[Ref]:
        given = [r for n in nodes for r in references((n.args, n.kwargs))]
        return list(dict.fromkeys(r for r in given if r.name not in self.layer_of))

    def _form(self, layer: int, entry: Ref) -> list[str]:
        """A layer's nodes without what its place in the model makes of them."""
        nodes, prefix = self.layers[layer], self._prefix(layer)
        names = {Ref(n.name, k): Ref(f"%{i}", k) for i, n in enumerate(nodes) for k in range(9)}
        names[entry] = Ref("%entry")
        for weight in self.graph.weights:
            if weight.name.startswith(prefix):
                names[Ref(weight.name)] = Ref(f"%.{weight.name.removeprefix(prefix)}")
        found = []
        for node in nodes:
            node = self._numbered(renamed_node(node, names), 0)
            frames = [f.path.removeprefix(prefix) for f in node.origin.frames if prefix in f.path]
            found.append(repr((node.target, node.args, node.kwargs, node.results, frames)))
        return found

    def _numbered(self, node: Node, layer: int) -> Node:
        place = self.numbered.get(node.target)
        if place is None:
            return node
        return replace(node, args=(*node.args[:place], layer, *node.args[place + 1 :]))

    def _copy(self, layer: int, entry: Ref) -> tuple[list[Node], Ref]:
        """Nodes of a layer that was not traced, and what it gives."""
        template = self.repetition.template(layer)
        old, new = self._prefix(template), self._prefix(layer)
        nodes = self.layers[template]
        names = {
            Ref(n.name, k): Ref(f"{n.name}_of_{layer}", k)
            for n in nodes
            for k in range(len(n.results))
        }
        names[self.results[template - 1]] = entry
        for weight in self.graph.weights:
            if weight.name.startswith(old):
                names[Ref(weight.name)] = Ref(new + weight.name.removeprefix(old))
        made = []
        for node in nodes:
            origin = replace(
                node.origin,
                frames=tuple(
                    replace(f, path=_moved(f.path, old, new), call=f"{f.call} of {layer}")
                    if f"{f.path}.".startswith(old)
                    else f
                    for f in node.origin.frames
                ),
            )
            copy = self._numbered(renamed_node(node, names), layer)
            made.append(replace(copy, name=f"{node.name}_of_{layer}", origin=origin))
        return made, names[self.results[template]]

    def _weights(self) -> tuple[Weight, ...]:
        """All weights, in the order of the whole model: those of copies after those traced."""
        weights = self.graph.weights
        layered = [w for w in weights if w.name.startswith(f"{self.repetition.path}.")]
        last = {w.kind: w for w in layered}
        result: list[Weight] = []
        for weight in weights:
            result.append(weight)
            if last.get(weight.kind) is not weight:
                continue
            for i in range(self.repetition.traced, len(self.repetition.kinds)):
                old, new = self._prefix(self.repetition.template(i)), self._prefix(i)
                result += [
                    replace(w, name=_moved(w.name, old, new))
                    for w in layered
                    if w.kind == weight.kind and w.name.startswith(old)
                ]
        return tuple(result)


def _moved(name: str, old: str, new: str) -> str:
    return (new + f"{name}.".removeprefix(old)).removesuffix(".")
