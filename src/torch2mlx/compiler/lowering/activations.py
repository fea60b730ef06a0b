"""Activation functions, elementwise."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.registry import LoweringError, lowering
from torch2mlx.compiler.lowering.types import as_float, is_complex, promote
from torch2mlx.compiler.runtime import pointwise as rt

__all__: list[str] = []

aten = torch.ops.aten


@lowering(aten.relu.default)
def lower_relu(b: Builder, x: Value) -> Any:
    """relu(Tensor self)."""
    return b.call(mx.maximum, x, 0)


@lowering(aten.relu6.default)
def lower_relu6(b: Builder, x: Value) -> Any:
    """relu6(Tensor self)."""
    return b.call(mx.clip, x, 0, 6)


@lowering(aten.gelu.default)
def lower_gelu(b: Builder, x: Value, *, approximate: str = "none") -> Any:
    """gelu(Tensor self, *, str approximate='none')."""
    return b.call({"none": rt.gelu, "tanh": rt.gelu_tanh}[approximate], x)


@lowering(aten.silu.default)
def lower_silu(b: Builder, x: Value) -> Any:
    """silu(Tensor self)."""
    if is_complex(x.dtype):
        raise LoweringError("aten.silu: MLX has no sigmoid of complex numbers")
    return b.call(rt.silu, as_float(b, x))


@lowering(aten.mish.default)
def lower_mish(b: Builder, x: Value) -> Any:
    """mish(Tensor self)."""
    return b.call(rt.mish, as_float(b, x))


@lowering(aten.hardswish.default)
def lower_hardswish(b: Builder, x: Value) -> Any:
    """hardswish(Tensor self)."""
    return b.call(rt.hardswish, x)


@lowering(aten.hardsigmoid.default)
def lower_hardsigmoid(b: Builder, x: Value) -> Any:
    """hardsigmoid(Tensor self)."""
    return b.call(rt.hardsigmoid, x)


@lowering(aten.hardtanh.default)
def lower_hardtanh(b: Builder, x: Value, low: Any = -1, high: Any = 1) -> Any:
    """hardtanh(Tensor self, Scalar min_val=-1, Scalar max_val=1)."""
    return b.call(mx.clip, x, low, high)


@lowering(aten.elu.default)
def lower_elu(b: Builder, x: Value, alpha: Any = 1, scale: Any = 1, input_scale: Any = 1) -> Any:
    """elu(Tensor self, Scalar alpha=1, Scalar scale=1, Scalar input_scale=1)."""
    return b.call(rt.elu, x, alpha, scale, input_scale)


@lowering(aten.selu.default)
def lower_selu(b: Builder, x: Value) -> Any:
    """selu(Tensor self): an ELU with the constants of Klambauer et al., 2017."""
    return b.call(rt.elu, x, 1.6732632423543772, 1.0507009873554805)


@lowering(aten.celu.default)
def lower_celu(b: Builder, x: Value, alpha: Any = 1.0) -> Any:
    """celu(Tensor self, Scalar alpha=1.0)."""
    return b.call(rt.elu, x, alpha, 1.0, 1.0 / alpha)


@lowering(aten.leaky_relu.default)
def lower_leaky_relu(b: Builder, x: Value, slope: Any = 0.01) -> Any:
    """leaky_relu(Tensor self, Scalar negative_slope=0.01)."""
    return b.call(rt.leaky_relu, x, slope)


@lowering(aten.prelu.default, aten._prelu_kernel.default)
def lower_prelu(b: Builder, x: Value, weight: Value) -> Any:
    """prelu(Tensor self, Tensor weight): one slope a channel, the second dimension."""
    if weight.ndim == 1 and x.ndim > 1:
        weight = b.call(mx.reshape, weight, [-1] + [1] * (x.ndim - 2))
    elif weight.ndim == 1 and x.ndim < 1:
        weight = b.call(mx.reshape, weight, [])
    return b.call(rt.leaky_relu, x, weight)


@lowering(aten.rrelu.default)
def lower_rrelu(
    b: Builder,
    x: Value,
    lower: Any = 0.125,
    upper: Any = 0.3333333333333333,
    training: bool = False,
    generator: Any = None,
) -> Any:
    """rrelu(Tensor self, Scalar lower, Scalar upper, bool training): evaluation mode only."""
    if training:
        raise LoweringError("aten.rrelu: training=True draws random slopes")
    return b.call(rt.leaky_relu, x, (lower + upper) / 2)


@lowering(aten.threshold.default)
def lower_threshold(b: Builder, x: Value, limit: Any, value: Any) -> Any:
    """threshold(Tensor self, Scalar threshold, Scalar value)."""
    return b.call(rt.threshold, *promote(b, x, limit)[:1], limit, value)


@lowering(aten.softplus.default)
def lower_softplus(b: Builder, x: Value, beta: Any = 1, threshold: Any = 20) -> Any:
    """softplus(Tensor self, Scalar beta=1, Scalar threshold=20)."""
    return b.call(rt.softplus, x, beta, threshold)


@lowering(aten.hardshrink.default)
def lower_hardshrink(b: Builder, x: Value, lambd: Any = 0.5) -> Any:
    """hardshrink(Tensor self, Scalar lambd=0.5)."""
    return b.call(rt.hard_shrink, x, lambd)


@lowering(aten.softshrink.default)
def lower_softshrink(b: Builder, x: Value, lambd: Any = 0.5) -> Any:
    """softshrink(Tensor self, Scalar lambd=0.5)."""
    return b.call(rt.soft_shrink, x, lambd)


@lowering(aten.glu.default)
def lower_glu(b: Builder, x: Value, dim: int = -1) -> Any:
    """glu(Tensor self, int dim=-1): the first half times the sigmoid of the second."""
    left, right = b.call(mx.split, x, 2, dim)
    return b.call(mx.multiply, left, b.call(mx.sigmoid, right))
