"""Modules without weights: which layer of `mlx.nn` each is, if any computes exactly the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch2mlx.compiler.graph import Graph, Node, Ref, TensorType
from torch2mlx.compiler.layers.layer import bound_arguments
from torch2mlx.compiler.layers.rules import Built, each, short

__all__ = ["weightless_layer"]

_SEQUENTIAL = "torch.nn.modules.container.Sequential"


def weightless_layer(node: Node, graph: Graph) -> Built | None:
    """The layer that a node is, if it is what a module of torch does.

    Pooling layers stand where the original has them; activations only in a Sequential, whose
    items stay in a list.  Elsewhere a function reads better.
    """
    module, parent = node.origin.frames[-1], node.origin.frames[-2]
    rule = _RULES.get(node.target._schema.name)
    if rule is None or not module.class_name.startswith("torch.nn.modules."):
        return None
    pooling = module.class_name.startswith("torch.nn.modules.pooling.")
    listed = parent.class_name == _SEQUENTIAL and module.path.rpartition(".")[2].isdigit()
    kind = _type_of(node.args[0], graph)
    if not (pooling or listed) or kind is None or not kind.dtype.is_floating_point:
        return None
    return rule(bound_arguments(node), kind)


def _type_of(ref: Ref, graph: Graph) -> TensorType | None:
    given = {i.name: i.type for i in graph.inputs} | {w.name: w.type for w in graph.weights}
    if ref.name in given:
        return given[ref.name]
    made = next((n for n in graph.nodes if n.name == ref.name), None)
    return made.results[ref.index] if made is not None else None


_Rule = Callable[[Mapping[str, Any], TensorType], Built | None]


def _is_single(kind: TensorType) -> bool:
    """Some layers of MLX round between their steps in half precision, torch's do not."""
    return str(kind.dtype) == "torch.float32"


def _plain(class_name: str, single: bool = False) -> _Rule:
    def rule(given: Mapping[str, Any], kind: TensorType) -> Built | None:
        return (class_name, (), {}, {}, False) if _is_single(kind) or not single else None

    return rule


def _gelu(given: Mapping[str, Any], kind: TensorType) -> Built | None:
    if not _is_single(kind):
        return None
    kwargs = {"approx": "tanh"} if given["approximate"] == "tanh" else {}
    return "GELU", (), kwargs, {}, False


def _leaky_relu(given: Mapping[str, Any], kind: TensorType) -> Built | None:
    slope = given["negative_slope"]
    # MLX takes the larger of x and slope · x.
    if not 0 <= slope <= 1 or not _is_single(kind):
        return None
    kwargs = {"negative_slope": slope} if slope != 0.01 else {}
    return "LeakyReLU", (), kwargs, {}, False


def _pool(name: str, dims: int) -> _Rule:
    def rule(given: Mapping[str, Any], kind: TensorType) -> Built | None:
        kernel = each(given["kernel_size"], dims)
        stride = each(given["stride"], dims) if given["stride"] else kernel
        padding = each(given["padding"], dims)
        dilated = any(d != 1 for d in each(given.get("dilation", 1), dims))
        if given["ceil_mode"] or dilated or len(kind.shape) != dims + 2:
            return None
        if name == "AvgPool":
            uncounted = any(padding) and not given["count_include_pad"]
            if uncounted or given.get("divisor_override") is not None or not _is_single(kind):
                return None
        kwargs = {"padding": short(padding)} if any(padding) else {}
        return f"{name}{dims}d", (short(kernel), short(stride)), kwargs, {}, True

    return rule


_RULES: dict[str, _Rule] = {
    "aten::relu": _plain("ReLU"),
    "aten::silu": _plain("SiLU"),
    "aten::tanh": _plain("Tanh"),
    "aten::sigmoid": _plain("Sigmoid"),
    "aten::gelu": _gelu,
    "aten::leaky_relu": _leaky_relu,
    **{f"aten::max_pool{n}d": _pool("MaxPool", n) for n in (1, 2, 3)},
    **{f"aten::avg_pool{n}d": _pool("AvgPool", n) for n in (1, 2, 3)},
}
