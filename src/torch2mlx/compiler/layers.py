"""Nodes that are exactly one call of an `mlx.nn` layer.

A layer keeps its weights in MLX's layout, so they are transposed once, at conversion, and tools
that look for `nn.Linear` or `nn.Embedding` (quantization, LoRA) find them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.graph import Graph, Node, Ref, references

__all__ = ["Layer", "LayerUse", "find_layers"]


@dataclass(frozen=True)
class Layer:
    """A layer of `mlx.nn` at a path of the module tree.

    Attributes:
        path: of the module.
        class_name: in `mlx.nn`.
        args, kwargs: of its constructor.
        axes: parameter → order of the axes of torch's tensor in MLX's layout.
        dtype: of its parameters, as torch names it.
    """

    path: str
    class_name: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()
    axes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    dtype: str = "float32"

    def build(self) -> Any:
        """The layer, its weights never evaluated."""
        import mlx.core as mx
        import mlx.nn as nn

        layer = getattr(nn, self.class_name)(*self.args, **dict(self.kwargs))
        layer.eval()
        layer.set_dtype(getattr(mx, self.dtype))
        return layer


@dataclass(frozen=True)
class LayerUse:
    """A call of a layer, or of one of its methods; the function of a program's `Call`."""

    layer: Layer
    method: str = ""

    def __call__(self, *arrays: Any) -> Any:
        function = self.layer.build()
        return (getattr(function, self.method) if self.method else function)(*arrays)


@dataclass(frozen=True)
class _Match:
    """A use of a layer; `arrange` moves channels last before and back after it."""

    use: LayerUse
    input: Ref
    channels_last: bool = False

    def lower(self, b: Builder, value: Value) -> Value:
        import mlx.core as mx

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
    for path in [p for p, layer in layers.items() if layer.axes]:
        uses = {name for name, m in found.items() if m.use.layer.path == path}
        if any(users.get(name, set()) - uses for name in members[path]):
            found = {name: m for name, m in found.items() if name not in uses}
    return found


def _reaches(node: Node, path: str) -> bool:
    """Whether the module whose code the node is has the layer below it.

    A tied weight may live elsewhere; it is then an argument, and the node stays functional.
    """
    own = [f.path for f in node.origin.frames if not _is_torch_module(f.class_name)]
    return not own or not own[-1] or path.startswith(f"{own[-1]}.")


def _is_torch_module(class_name: str) -> bool:
    return class_name.startswith("torch.nn.")


def _match(node: Node, graph: Graph) -> _Match | None:
    rule = _RULES.get(node.target._schema.name)
    if rule is None:
        return None
    schema = node.target._schema.arguments
    given = {a.name: a.default_value for a in schema if a.has_default_value()}
    given |= dict(zip((a.name for a in schema), node.args, strict=False)) | dict(node.kwargs)
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
    source = given.get("input", given.get("indices"))
    if not isinstance(source, Ref):
        return None
    built = rule(given, shapes)
    if built is None:
        return None
    class_name, args, kwargs, axes, channels_last = built
    dtype = str(dtypes.pop()).removeprefix("torch.")
    layer = Layer(path, class_name, args, tuple(kwargs.items()), tuple(axes.items()), dtype)
    return _Match(LayerUse(layer), source, channels_last)


_Built = tuple[str, tuple[Any, ...], dict[str, Any], dict[str, tuple[int, ...]], bool] | None
_Rule = Callable[[Mapping[str, Any], Mapping[str, tuple[int, ...]]], _Built]


def _linear(given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> _Built:
    outputs, inputs = shapes["weight"]
    kwargs = {} if "bias" in shapes else {"bias": False}
    return "Linear", (inputs, outputs), kwargs, {}, False


def _embedding(given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> _Built:
    return "Embedding", tuple(shapes["weight"]), {}, {}, False


def _layer_norm(given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> _Built:
    if len(given["normalized_shape"]) != 1 or "weight" not in shapes:
        return None
    kwargs: dict[str, Any] = {"eps": given["eps"]} if given["eps"] != 1e-5 else {}
    if "bias" not in shapes:
        kwargs["bias"] = False
    return "LayerNorm", tuple(shapes["weight"]), kwargs, {}, False


def _rms_norm(given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> _Built:
    # Without an eps torch takes the dtype's, which the layer's weights do not tell.
    if len(given["normalized_shape"]) != 1 or given["eps"] is None:
        return None
    kwargs = {"eps": given["eps"]} if given["eps"] != 1e-5 else {}
    return "RMSNorm", tuple(shapes["weight"]), kwargs, {}, False


def _batch_norm(given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> _Built:
    if "weight" not in shapes or "bias" not in shapes or "running_mean" not in shapes:
        return None
    kwargs = {"eps": given["eps"]} if given["eps"] != 1e-5 else {}
    return "BatchNorm", tuple(shapes["weight"]), kwargs, {}, True


def _group_norm(given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> _Built:
    if "weight" not in shapes or "bias" not in shapes:
        return None
    kwargs: dict[str, Any] = {"eps": given["eps"]} if given["eps"] != 1e-5 else {}
    args = (given["num_groups"], shapes["weight"][0])
    return "GroupNorm", args, {**kwargs, "pytorch_compatible": True}, {}, True


def _convolution(dims: int) -> _Rule:
    def rule(given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> _Built:
        outputs, inputs, *kernel = shapes["weight"]
        stride, dilation = _each(given["stride"], dims), _each(given["dilation"], dims)
        padding = given["padding"]
        if isinstance(padding, str):
            spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            if padding == "same" and any(s % 2 for s in spans):
                return None  # torch pads such a kernel more on one side
            padding = [s // 2 if padding == "same" else 0 for s in spans]
        padding = _each(padding, dims)
        if dims == 3 and (any(d != 1 for d in dilation) or given["groups"] != 1):
            return None  # mlx.nn.Conv3d has neither
        kwargs: dict[str, Any] = {}
        for key, value, usual in (
            ("stride", stride, 1),
            ("padding", padding, 0),
            ("dilation", dilation, 1),
        ):
            if any(v != usual for v in value):
                kwargs[key] = _short(value)
        if given["groups"] != 1:
            kwargs["groups"] = given["groups"]
        if "bias" not in shapes:
            kwargs["bias"] = False
        args = (inputs * given["groups"], outputs, _short(kernel))
        axes = (0, *range(2, dims + 2), 1)
        return f"Conv{dims}d", args, kwargs, {"weight": axes}, True

    return rule


def _each(value: Any, dims: int) -> list[int]:
    items = [value] if isinstance(value, int) else list(value)
    return items * dims if len(items) == 1 else items


def _short(values: Iterable[int]) -> int | tuple[int, ...]:
    """One number for equal ones."""
    items = tuple(values)
    return items[0] if len(set(items)) == 1 else items


_RULES: dict[str, _Rule] = {
    "aten::linear": _linear,
    "aten::embedding": _embedding,
    "aten::layer_norm": _layer_norm,
    "aten::rms_norm": _rms_norm,
    "aten::_native_batch_norm_legit_no_training": _batch_norm,
    "aten::group_norm": _group_norm,
    "aten::conv1d": _convolution(1),
    "aten::conv2d": _convolution(2),
    "aten::conv3d": _convolution(3),
}
