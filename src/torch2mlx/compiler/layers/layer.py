"""A layer of `mlx.nn` in the module tree, and a call of it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch2mlx.compiler.graph import Node

__all__ = [
    "Layer",
    "LayerUse",
    "all_options",
    "argument_names",
    "bound_arguments",
    "is_elementwise",
]


@dataclass(frozen=True)
class Layer:
    """A layer of `mlx.nn` at a path of the module tree.

    Attributes:
        path: of the module.
        class_name: in `mlx.nn`.
        args, kwargs: of its constructor.
        axes: parameter → order of the axes of torch's tensor in MLX's layout.
        dtype: of its parameters, as torch names it.
        module: where the class is.
    """

    path: str
    class_name: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()
    axes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    dtype: str = "float32"
    module: str = "mlx.nn"

    def build(self) -> Any:
        """The layer, its weights never evaluated."""
        import mlx.core as mx

        make = getattr(import_module(self.module), self.class_name)
        layer = make(*self.args, **dict(self.kwargs))
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
        if self.layer.class_name == "SwitchLinear":
            arrays = arrays[:2]  # whether experts are in order is known when it runs
        return (getattr(function, self.method) if self.method else function)(*arrays)


_CONVOLUTION = {"stride": 1, "padding": 0, "dilation": 1}
_OPTIONS: dict[str, dict[str, Any]] = {
    "Linear": {"bias": True},
    "SwitchLinear": {"bias": True},
    "LayerNorm": {"eps": 1e-5, "bias": True},
    "RMSNorm": {"eps": 1e-5},
    "BatchNorm": {"eps": 1e-5},
    "GroupNorm": {"eps": 1e-5, "pytorch_compatible": False},
    "InstanceNorm": {"eps": 1e-5, "affine": False},
    "GELU": {"approx": "none"},
    "LeakyReLU": {"negative_slope": 0.01},
    **{f"Conv{n}d": {**_CONVOLUTION, "groups": 1, "bias": True} for n in (1, 2)},
    "Conv3d": {**_CONVOLUTION, "bias": True},
    **{
        f"ConvTranspose{n}d": {**_CONVOLUTION, "output_padding": 0, "bias": True} for n in (1, 2, 3)
    },
    **{f"{kind}Pool{n}d": {"padding": 0} for kind in ("Max", "Avg") for n in (1, 2, 3)},
}
"""Class → its optional arguments and what they usually are."""

_ARGUMENTS = {
    "Linear": ("inputs", "outputs"),
    "SwitchLinear": ("inputs", "outputs", "experts"),
    "Embedding": ("count", "dims"),
    "LayerNorm": ("dims",),
    "RMSNorm": ("dims",),
    "InstanceNorm": ("channels",),
    "BatchNorm": ("channels",),
    "GroupNorm": ("groups", "channels"),
    **{f"{kind}Pool{n}d": ("kernel", "stride") for kind in ("Max", "Avg") for n in (1, 2, 3)},
    **{
        f"{kind}{n}d": ("in_channels", "out_channels", "kernel")
        for kind in ("Conv", "ConvTranspose")
        for n in (1, 2, 3)
    },
}

_ELEMENTWISE = ("GELU", "LeakyReLU", "ReLU", "SiLU", "Sigmoid", "Tanh")


def all_options(layer: Layer) -> list[tuple[str, Any, Any]]:
    """Name, value and usual value of every optional argument."""
    given = dict(layer.kwargs)
    usual = _OPTIONS.get(layer.class_name, {})
    return [(name, given.get(name, value), value) for name, value in usual.items()]


def argument_names(layer: Layer) -> tuple[str, ...]:
    """What to call the positional arguments of the constructor where modules differ in them."""
    return _ARGUMENTS.get(layer.class_name, ())


def is_elementwise(function: Any) -> bool:
    """Whether it is a layer that works on every element alone."""
    return isinstance(function, LayerUse) and function.layer.class_name in _ELEMENTWISE


def bound_arguments(node: Node) -> dict[str, Any]:
    """The arguments of a node by the names of its schema, defaults among them."""
    schema = node.target._schema.arguments
    given = {a.name: a.default_value for a in schema if a.has_default_value()}
    given |= dict(zip((a.name for a in schema), node.args, strict=False))
    return given | dict(node.kwargs)
