"""Complex numbers, their parts and conjugates."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.registry import lowering
from torch2mlx.compiler.lowering.types import (
    as_float,
    is_complex,
)
from torch2mlx.compiler.runtime import pointwise as rt

__all__: list[str] = []

aten = torch.ops.aten


@lowering(aten.polar.default)
def lower_polar(b: Builder, radius: Value, angle: Value) -> Any:
    """polar(Tensor abs, Tensor angle): complex numbers."""
    return b.call(rt.polar, radius, angle)


@lowering(aten.angle.default)
def lower_angle(b: Builder, x: Value) -> Any:
    """angle(Tensor self): the argument; of a real number 0 or π, NaN as it is."""
    if is_complex(x.dtype):
        return b.call(rt.angle, x)
    x = as_float(b, x)
    return b.call(rt.angle_of_real, x)


@lowering(aten.complex.default)
def lower_complex(b: Builder, real: Value, imaginary: Value) -> Any:
    """complex(Tensor real, Tensor imag)."""
    return b.call(rt.complex_number, real, imaginary)


@lowering(
    aten.conj.default, aten._conj.default, aten._conj_physical.default, aten.conj_physical.default
)
def lower_conj(b: Builder, x: Value) -> Any:
    """conj(Tensor self)."""
    return b.call(mx.conjugate, x) if is_complex(x.dtype) else x


@lowering(aten.resolve_conj.default, aten.resolve_neg.default)
def lower_resolve(b: Builder, x: Value) -> Any:
    """resolve_conj(Tensor self): MLX has no lazy conjugation."""
    return x
