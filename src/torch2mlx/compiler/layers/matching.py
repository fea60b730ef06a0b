"""Nodes that are exactly one call of an `mlx.nn` layer.

A layer keeps its weights in MLX's layout, so they are transposed once, at conversion, and tools
that look for `nn.Linear` or `nn.Embedding` (quantization, LoRA) find them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.graph import Graph, Node, Ref, references
from torch2mlx.compiler.layers.layer import Layer, LayerUse, bound_arguments
from torch2mlx.compiler.layers.rules import RULES, Built
from torch2mlx.compiler.layers.weightless import weightless_layer

__all__ = ["find_layers"]


@dataclass(frozen=True)
class _Match:
    """A use of a layer.

    Attributes:
        use: the layer.
        input: what it is applied to.
        channels_last: the input's channels move last before and back after it.
        chosen: which of a layer's experts, for each row [rows, width] of the input, and whether
            these are in order.
    """

    use: LayerUse
    input: Ref
    channels_last: bool = False
    chosen: tuple[Ref, ...] = ()

    def lower(self, b: Builder, value: Value, *chosen: Value) -> Value:
        import mlx.core as mx

        if chosen:
            value = b.call(mx.expand_dims, value, -2)
            rows: Value = b.call(mx.squeeze, b.call(self.use, value, *chosen), -2)
            return rows
        if not self.channels_last:
            result: Value = b.call(self.use, value)
            return result
        n = value.ndim
        value = b.call(mx.transpose, value, (0, *range(2, n), 1))
        value = b.call(self.use, value)
        back: Value = b.call(mx.transpose, value, (0, n - 1, *range(1, n - 1)))
        return back


def find_layers(graph: Graph) -> dict[str, _Match]:
    """Node name → the layer call that it is.

    A weight that other code uses too keeps torch's layout, and its node stays functional
    where the layer's layout differs.
    """
    weights = {w.name: w for w in graph.weights}
    owners = {frame.path for node in graph.nodes for frame in node.origin.frames[:-1]} | {
        node.origin.path
        for node in graph.nodes
        if node.origin.frames and not _is_torch_module(node.origin.frames[-1].class_name)
    }
    users: dict[str, set[str]] = {}
    for node in graph.nodes:
        for ref in references((node.args, node.kwargs)):
            users.setdefault(ref.name, set()).add(node.name)
    for value in (*graph.outputs, *graph.states.values()):
        for ref in references(value):
            users.setdefault(ref.name, set()).add("return")
    members: dict[str, set[str]] = {}
    for name in weights:
        members.setdefault(name.rpartition(".")[0], set()).add(name)

    found: dict[str, _Match] = {}
    layers: dict[str, Layer] = {}
    nodes = sorted(graph.nodes, key=lambda n: n.target._schema.name != "aten::embedding")
    for node in nodes:
        match = _match(node, graph)
        if match is None or not _reaches(node, match.use.layer.path):
            continue
        layer = match.use.layer
        taken = layers.get(layer.path)
        if taken is not None and taken.class_name == "Embedding" and layer.class_name == "Linear":
            if "bias" not in dict(layer.kwargs):
                continue
            found[node.name] = _Match(LayerUse(taken, "as_linear"), match.input)
            continue
        if (
            layer.path in owners
            or not layer.path
            or any(other.startswith(f"{layer.path}.") for other in members)
            or (taken is not None and taken != layer)
        ):
            continue
        layers[layer.path] = layer
        found[node.name] = match
    for node, built in _without_weights(graph, {*found}, members):
        class_name, args, kwargs, _, channels_last = built
        layer = Layer(node.origin.path, class_name, args, tuple(kwargs.items()))
        if layers.setdefault(layer.path, layer) == layer:
            found[node.name] = _Match(LayerUse(layer), node.args[0], channels_last)
    for path in [p for p, layer in layers.items() if layer.axes]:
        uses = {name for name, m in found.items() if m.use.layer.path == path}
        if any(users.get(name, set()) - uses for name in members[path]):
            found = {name: m for name, m in found.items() if name not in uses}
    return found


def _without_weights(
    graph: Graph, found: set[str], members: Mapping[str, set[str]]
) -> Iterator[tuple[Node, Built]]:
    """Nodes that are all that one of torch's modules without weights does."""
    counts = Counter(n.origin.frames[-1] for n in graph.nodes if n.origin.frames)
    for node in graph.nodes:
        if node.name in found or not node.args or not isinstance(node.args[0], Ref):
            continue
        frames = node.origin.frames
        # A module that is called twice has two frames; one call of it has one node.
        if len(frames) < 2 or counts[frames[-1]] != 1 or frames[-1].path in members:
            continue
        built = weightless_layer(node, graph)
        if built is not None:
            yield node, built


def _reaches(node: Node, path: str) -> bool:
    """Whether the module whose code the node is has the layer below it.

    A tied weight may live elsewhere; it is then an argument, and the node stays functional.
    """
    own = [f.path for f in node.origin.frames if not _is_torch_module(f.class_name)]
    return not own or not own[-1] or path.startswith(f"{own[-1]}.")


def _is_torch_module(class_name: str) -> bool:
    return class_name.startswith("torch.nn.")


def _match(node: Node, graph: Graph) -> _Match | None:
    rule = RULES.get(node.target._schema.name)
    if rule is None:
        return None
    given = bound_arguments(node)
    weights = {w.name: w for w in graph.weights}
    named = {
        key: value
        for key, value in given.items()
        if key in ("weight", "bias", "running_mean", "running_var") and value is not None
    }
    path = ""
    for key, ref in named.items():
        # Every tensor of the layer sits under its own name in one module.
        if not isinstance(ref, Ref) or ref.name not in weights:
            return None
        owner, _, leaf = ref.name.rpartition(".")
        if leaf != key or (path and owner != path) or ref.name in graph.states:
            return None
        path = owner
    if not path:
        return None
    shapes = {key: weights[ref.name].type.shape for key, ref in named.items()}
    dtypes = {weights[ref.name].type.dtype for ref in named.values()}
    if len(dtypes) != 1:
        return None
    chosen = (given["indices"], given["in_order"]) if "x" in given else ()
    source = given.get("input", given.get("x", given.get("indices")))
    if not isinstance(source, Ref):
        return None
    built = rule(given, shapes)
    if built is None:
        return None
    class_name, args, kwargs, axes, channels_last = built
    dtype = str(dtypes.pop()).removeprefix("torch.")
    module = "mlx_lm.models.switch_layers" if chosen else "mlx.nn"
    layer = Layer(path, class_name, args, tuple(kwargs.items()), tuple(axes.items()), dtype, module)
    return _Match(LayerUse(layer), source, channels_last, chosen)
