"""Operators with weights: which layer of `mlx.nn` each is, if any computes exactly the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["RULES", "Built", "each", "short"]

Built = tuple[str, tuple[Any, ...], dict[str, Any], dict[str, tuple[int, ...]], bool]
"""Class, arguments, options, axes of its weights, and whether it takes channels last."""

Rule = Callable[[Mapping[str, Any], Mapping[str, tuple[int, ...]]], Built | None]


def _linear(given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Built | None:
    outputs, inputs = shapes["weight"]
    kwargs = {} if "bias" in shapes else {"bias": False}
    return "Linear", (inputs, outputs), kwargs, {}, False


def _embedding(given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Built | None:
    return "Embedding", tuple(shapes["weight"]), {}, {}, False


def _layer_norm(given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Built | None:
    if len(given["normalized_shape"]) != 1 or "weight" not in shapes:
        return None
    kwargs: dict[str, Any] = {"eps": given["eps"]} if given["eps"] != 1e-5 else {}
    if "bias" not in shapes:
        kwargs["bias"] = False
    return "LayerNorm", tuple(shapes["weight"]), kwargs, {}, False


def _rms_norm(given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Built | None:
    # Without an eps torch takes the dtype's, which the layer's weights do not tell.
    if len(given["normalized_shape"]) != 1 or given["eps"] is None:
        return None
    kwargs = {"eps": given["eps"]} if given["eps"] != 1e-5 else {}
    return "RMSNorm", tuple(shapes["weight"]), kwargs, {}, False


def _batch_norm(given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Built | None:
    if "weight" not in shapes or "bias" not in shapes or "running_mean" not in shapes:
        return None
    kwargs = {"eps": given["eps"]} if given["eps"] != 1e-5 else {}
    return "BatchNorm", tuple(shapes["weight"]), kwargs, {}, True


def _group_norm(given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Built | None:
    if "weight" not in shapes or "bias" not in shapes:
        return None
    kwargs: dict[str, Any] = {"eps": given["eps"]} if given["eps"] != 1e-5 else {}
    args = (given["num_groups"], shapes["weight"][0])
    return "GroupNorm", args, {**kwargs, "pytorch_compatible": True}, {}, True


def _convolution(dims: int) -> Rule:
    def rule(given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Built | None:
        outputs, inputs, *kernel = shapes["weight"]
        stride, dilation = each(given["stride"], dims), each(given["dilation"], dims)
        padding = given["padding"]
        if isinstance(padding, str):
            spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            if padding == "same" and any(s % 2 for s in spans):
                return None  # torch pads such a kernel more on one side
            padding = [s // 2 if padding == "same" else 0 for s in spans]
        padding = each(padding, dims)
        if dims == 3 and (any(d != 1 for d in dilation) or given["groups"] != 1):
            return None  # mlx.nn.Conv3d has neither
        kwargs: dict[str, Any] = {}
        for key, value, usual in (
            ("stride", stride, 1),
            ("padding", padding, 0),
            ("dilation", dilation, 1),
        ):
            if any(v != usual for v in value):
                kwargs[key] = short(value)
        if given["groups"] != 1:
            kwargs["groups"] = given["groups"]
        if "bias" not in shapes:
            kwargs["bias"] = False
        args = (inputs * given["groups"], outputs, short(kernel))
        axes = (0, *range(2, dims + 2), 1)
        return f"Conv{dims}d", args, kwargs, {"weight": axes}, True

    return rule


def _transposed(dims: int) -> Rule:
    def rule(given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Built | None:
        inputs, outputs, *kernel = shapes["weight"]
        names = ("stride", "padding", "dilation", "output_padding")
        values = {name: each(given[name], dims) for name in names}
        reach = [d * (k - 1) for d, k in zip(values["dilation"], kernel, strict=True)]
        # The layers of MLX have no groups, and a convolution cannot crop beyond its kernel.
        crops = any(p > r for p, r in zip(values["padding"], reach, strict=True))
        if given["groups"] != 1 or crops:
            return None
        usual = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0}
        kwargs: dict[str, Any] = {
            k: short(v) for k, v in values.items() if any(n != usual[k] for n in v)
        }
        if "bias" not in shapes:
            kwargs["bias"] = False
        axes = (1, *range(2, dims + 2), 0)
        args = (inputs, outputs, short(kernel))
        return f"ConvTranspose{dims}d", args, kwargs, {"weight": axes}, True

    return rule


def _instance_norm(given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Built | None:
    if "weight" not in shapes or "bias" not in shapes or "running_mean" in shapes:
        return None
    kwargs: dict[str, Any] = {"eps": given["eps"]} if given["eps"] != 1e-5 else {}
    args = tuple(shapes["weight"])
    return "InstanceNorm", args, {**kwargs, "affine": True}, {}, True


def _switch_linear(given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Built | None:
    experts, outputs, inputs = shapes["weight"]
    axes: dict[str, tuple[int, ...]] = {}
    if given["transposed"]:
        outputs, inputs, axes = inputs, outputs, {"weight": (0, 2, 1)}
    kwargs = {} if "bias" in shapes else {"bias": False}
    return "SwitchLinear", (inputs, outputs, experts), kwargs, axes, False


def each(value: Any, dims: int) -> list[int]:
    """One number an axis: torch repeats a single one."""
    items = [value] if isinstance(value, int) else list(value)
    return items * dims if len(items) == 1 else items


def short(values: Iterable[int]) -> int | tuple[int, ...]:
    """One number for equal ones."""
    items = tuple(values)
    return items[0] if len(set(items)) == 1 else items


RULES: dict[str, Rule] = {
    "aten::linear": _linear,
    "aten::embedding": _embedding,
    "aten::layer_norm": _layer_norm,
    "aten::rms_norm": _rms_norm,
    "aten::_native_batch_norm_legit_no_training": _batch_norm,
    "aten::group_norm": _group_norm,
    "aten::instance_norm": _instance_norm,
    "aten::conv_transpose1d": _transposed(1),
    "aten::conv_transpose2d": _transposed(2),
    "aten::conv_transpose3d": _transposed(3),
    "aten::conv1d": _convolution(1),
    "aten::conv2d": _convolution(2),
    "aten::conv3d": _convolution(3),
    "torch2mlx::switch_linear": _switch_linear,
}
