"""Tensors from numbers, copies, and changes of the element type."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.registry import LoweringError, lowering
from torch2mlx.compiler.lowering.types import is_floating, is_integer, mx_dtype, number_in
from torch2mlx.compiler.runtime import creation as rt
from torch2mlx.compiler.symbolic import SymbolicInt

__all__: list[str] = []

aten = torch.ops.aten

Size = list[int]


def _default_dtype(*numbers: Any) -> Any:
    """The type torch gives to a tensor made of Python numbers."""
    if any(isinstance(n, complex) for n in numbers):
        return mx.complex64
    if any(isinstance(n, float) for n in numbers):
        return mx.float32
    return mx.bool_ if all(isinstance(n, bool) for n in numbers) else mx.int64


def _filled(b: Builder, size: Size, value: Any, dtype: Any, options: dict[str, Any]) -> Any:
    """`value` is 0, 1 or any other number; device, memory format and pinning say nothing in MLX."""
    asked = options.get("dtype")
    dtype = dtype if asked is None else mx_dtype(asked)
    layout = options.get("layout")
    if layout not in (None, torch.strided):
        raise LoweringError(f"layout={layout}: MLX has dense arrays only")
    if value in (0, 1) and not isinstance(value, complex):
        return b.call(mx.ones if value else mx.zeros, list(size), dtype)
    return b.call(mx.full, list(size), number_in(value, dtype), dtype)


@lowering(aten.zeros.default, aten.empty.memory_format, aten.empty_permuted.default)
def lower_zeros(b: Builder, size: Size, order: Size | None = None, **options: Any) -> Any:
    """zeros(SymInt[] size, *, dtype, layout, device); an empty tensor is one of zeros."""
    return _filled(b, size, 0, mx.float32, options)


@lowering(aten.empty_strided.default)
def lower_empty_strided(b: Builder, size: Size, stride: Size, **options: Any) -> Any:
    """empty_strided(SymInt[] size, SymInt[] stride): arrays of MLX have no strides to choose."""
    return _filled(b, size, 0, mx.float32, options)


@lowering(aten.ones.default)
def lower_ones(b: Builder, size: Size, **options: Any) -> Any:
    """ones(SymInt[] size, *, dtype, layout, device)."""
    return _filled(b, size, 1, mx.float32, options)


@lowering(aten.full.default)
def lower_full(b: Builder, size: Size, fill_value: Any, **options: Any) -> Any:
    """full(SymInt[] size, Scalar fill_value, *, dtype, layout, device)."""
    return _filled(b, size, fill_value, _default_dtype(fill_value), options)


@lowering(aten.scalar_tensor.default)
def lower_scalar_tensor(b: Builder, value: Any, **options: Any) -> Any:
    """scalar_tensor(Scalar s, *, dtype, layout, device): float32 unless told otherwise."""
    return _filled(b, [], value, mx.float32, options)


@lowering(aten.zeros_like.default, aten.empty_like.default, aten.zero.default)
def lower_zeros_like(b: Builder, x: Value, **options: Any) -> Any:
    """zeros_like(Tensor self, *, dtype, layout, device, memory_format); zero: `zero_` of a view."""
    return _filled(b, list(x.shape), 0, x.dtype, options)


@lowering(aten.ones_like.default)
def lower_ones_like(b: Builder, x: Value, **options: Any) -> Any:
    """ones_like(Tensor self, *, dtype, layout, device, memory_format)."""
    return _filled(b, list(x.shape), 1, x.dtype, options)


@lowering(aten.full_like.default)
def lower_full_like(b: Builder, x: Value, fill_value: Any, **options: Any) -> Any:
    """full_like(Tensor self, Scalar fill_value, *, dtype, layout, device, memory_format)."""
    return _filled(b, list(x.shape), fill_value, x.dtype, options)


@lowering(aten.new_zeros.default, aten.new_empty.default)
def lower_new_zeros(b: Builder, x: Value, size: Size, **options: Any) -> Any:
    """new_zeros(Tensor self, SymInt[] size, *, dtype, layout, device)."""
    return _filled(b, size, 0, x.dtype, options)


@lowering(aten.new_empty_strided.default)
def lower_new_empty_strided(b: Builder, x: Value, size: Size, stride: Size, **options: Any) -> Any:
    """new_empty_strided(Tensor self, SymInt[] size, SymInt[] stride, *, dtype, device)."""
    return _filled(b, size, 0, x.dtype, options)


@lowering(aten.new_ones.default)
def lower_new_ones(b: Builder, x: Value, size: Size, **options: Any) -> Any:
    """new_ones(Tensor self, SymInt[] size, *, dtype, layout, device)."""
    return _filled(b, size, 1, x.dtype, options)


@lowering(aten.new_full.default)
def lower_new_full(b: Builder, x: Value, size: Size, fill_value: Any, **options: Any) -> Any:
    """new_full(Tensor self, SymInt[] size, Scalar fill_value, *, dtype, layout, device)."""
    return _filled(b, size, fill_value, x.dtype, options)


@lowering(aten.fill.Scalar, aten.fill.Tensor)
def lower_fill(b: Builder, x: Value, value: Any) -> Any:
    """fill(Tensor self, Tensor or Scalar value)."""
    if isinstance(value, Value):
        return b.call(mx.broadcast_to, b.cast(value, x.dtype), list(x.shape))
    return _filled(b, list(x.shape), value, x.dtype, {})


# Sequences


@lowering(aten.arange.default)
def lower_arange(b: Builder, end: Any, **options: Any) -> Any:
    """arange(Scalar end, *, dtype, layout, device)."""
    return lower_arange_step(b, 0, end, 1, **options)


@lowering(aten.arange.start)
def lower_arange_start(b: Builder, start: Any, end: Any, **options: Any) -> Any:
    """arange.start(Scalar start, Scalar end, *, dtype, layout, device)."""
    return lower_arange_step(b, start, end, 1, **options)


@lowering(aten.arange.start_step)
def lower_arange_step(b: Builder, start: Any, end: Any, step: Any = 1, **options: Any) -> Any:
    """arange.start_step(Scalar start, Scalar end, Scalar step=1, *, dtype, layout, device).

    Integers from integer bounds, floats in float32; fractional bounds of integers are refused.
    """
    asked = options.get("dtype")
    dtype = _default_dtype(start, end, step) if asked is None else mx_dtype(asked)
    if is_integer(dtype):
        start, end, step = (int(n) if _is_whole(n) else n for n in (start, end, step))
    numbers = (start, end, step)
    if all(isinstance(n, int) for n in numbers):
        counted = b.call(mx.arange, start, end, step, mx.int64)
    elif asked is not None and is_integer(dtype):
        raise LoweringError(f"aten.arange: bounds {numbers} with dtype={asked}")
    else:
        counted = b.call(rt.arange, *(_bound(n) for n in numbers))
    return b.cast(counted, dtype)


def _is_whole(number: Any) -> bool:
    return isinstance(number, float) and number.is_integer()


def _bound(number: Any) -> Any:
    """A float, or the extent that depends on the input's size."""
    return number if isinstance(number, SymbolicInt) else float(number)


@lowering(aten.linspace.default, aten.linspace.Tensor_Tensor)
@lowering(aten.linspace.Tensor_Scalar, aten.linspace.Scalar_Tensor)
def lower_linspace(b: Builder, start: Any, end: Any, steps: int, **options: Any) -> Any:
    """linspace.Tensor_Tensor(Tensor start, Tensor end, int steps, *, dtype, layout, device)."""
    asked = options.get("dtype")
    dtype = mx.float32 if asked is None else mx_dtype(asked)
    if not is_floating(dtype):
        raise LoweringError(f"aten.linspace: dtype={asked}")
    bounds = [b.cast(n, mx.float32) if isinstance(n, Value) else _bound(n) for n in (start, end)]
    return b.cast(b.call(rt.linspace, *bounds, steps), dtype)


@lowering(aten.logspace.default)
def lower_logspace(
    b: Builder, start: Any, end: Any, steps: int, base: float = 10.0, **options: Any
) -> Any:
    """logspace(Scalar start, Scalar end, int steps, float base=10.0, *, dtype, device)."""
    asked = options.get("dtype")
    dtype = mx.float32 if asked is None else mx_dtype(asked)
    if not is_floating(dtype):
        raise LoweringError(f"aten.logspace: dtype={asked}")
    exponents = b.call(rt.linspace, _bound(start), _bound(end), steps)
    return b.cast(b.call(mx.power, base, exponents), dtype)


@lowering(aten.eye.default)
def lower_eye(b: Builder, n: int, **options: Any) -> Any:
    """eye(SymInt n, *, dtype, layout, device)."""
    return lower_eye_m(b, n, n, **options)


@lowering(aten.eye.m)
def lower_eye_m(b: Builder, n: int, m: int, **options: Any) -> Any:
    """eye.m(SymInt n, SymInt m, *, dtype, layout, device)."""
    asked = options.get("dtype")
    return b.call(mx.eye, n, m, 0, mx.float32 if asked is None else mx_dtype(asked))


# Copies and casts


@lowering(
    aten.clone.default,
    aten.detach.default,
    aten.alias.default,
    aten.contiguous.default,
    aten.lift_fresh_copy.default,
    aten.lift_fresh.default,
    aten.detach_copy.default,
    aten.alias_copy.default,
)
def lower_identity(b: Builder, x: Value, **options: Any) -> Any:
    """clone(Tensor self): arrays of MLX are values; there is nothing to copy or to detach."""
    return x


@lowering(aten._to_copy.default)
def lower_to_copy(b: Builder, x: Value, *, dtype: torch.dtype | None = None, **options: Any) -> Any:
    """_to_copy(Tensor self, *, dtype, layout, device, pin_memory, non_blocking, memory_format)."""
    if options.get("layout") not in (None, torch.strided):
        raise LoweringError(f"aten._to_copy: layout={options['layout']}")
    return x if dtype is None else b.cast(x, mx_dtype(dtype))


@lowering(aten.to.dtype)
def lower_to_dtype(b: Builder, x: Value, dtype: torch.dtype, *options: Any, **named: Any) -> Any:
    """to.dtype(Tensor self, ScalarType dtype, bool non_blocking, bool copy, memory_format)."""
    return b.cast(x, mx_dtype(dtype))


@lowering(aten.to.dtype_layout)
def lower_to_dtype_layout(
    b: Builder, x: Value, *, dtype: torch.dtype | None = None, **options: Any
) -> Any:
    """to.dtype_layout(Tensor self, *, dtype, layout, device, non_blocking, copy)."""
    return lower_to_copy(b, x, dtype=dtype, layout=options.get("layout"))


@lowering(aten.to.device)
def lower_to_device(
    b: Builder, x: Value, device: Any, dtype: torch.dtype, *options: Any, **named: Any
) -> Any:
    """to.device(Tensor self, Device device, ScalarType dtype, bool non_blocking, bool copy)."""
    return b.cast(x, mx_dtype(dtype))


@lowering(aten.to.other, aten.type_as.default)
def lower_to_other(b: Builder, x: Value, other: Value, *options: Any, **named: Any) -> Any:
    """type_as(Tensor self, Tensor other)."""
    return b.cast(x, other.dtype)


@lowering(aten.copy.default)
def lower_copy(b: Builder, x: Value, source: Value, non_blocking: bool = False) -> Any:
    """copy(Tensor self, Tensor src): the source in the shape and type of self."""
    source = b.cast(source, x.dtype)
    if source.shape == x.shape:
        return source
    return b.call(mx.broadcast_to, source, list(x.shape))
