"""Arithmetic on tensors as expressions, and the casts that are made of it.

It goes through the very MLX functions that a port's own loader calls, so the bytes are the same as
on the in-memory path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from torch2mlx.dtypes import DType, from_mx, to_mx
from torch2mlx.planning.expressions import Expr, Reader, contiguous
from torch2mlx.planning.regions import Region, as_slices, full, lengths

__all__ = ["AlongRows", "Apply", "Whole", "cast", "whole_bytes"]

Array = np.ndarray[Any, Any]
_Unary = Callable[[Any], Any]


@dataclass(frozen=True, eq=False, slots=True)
class Apply(Expr):
    """An elementwise MLX function with numpy broadcasting; constants are bound inside `function`.

    Attributes:
        name: for printing ("astype bfloat16").
        function: takes one MLX array an operand, returns the result.
        operands: tensors; an extent of 1 broadcasts.
        inverse: undoes the function in float32 torch, where it has one operand and an inverse.
        forward: the function in torch, for checking without MLX (None: not available).
        inverse_in: for a function whose constant has elements of its own (one factor a row):
            region of the output → `inverse` there.
    """

    name: str
    function: Callable[..., Any]
    operands: tuple[Expr, ...]
    dtype: DType
    shape: tuple[int, ...]
    inverse: Callable[[Any], Any] | None = None
    forward: Callable[[Any], Any] | None = None
    inverse_in: Callable[[Region], Callable[[Any], Any]] | None = None

    @property
    def children(self) -> tuple[Expr, ...]:
        return self.operands

    def operand_region(self, operand: Expr, region: Region) -> Region:
        """The operand's region that holds `region` of the output."""
        own = region[len(region) - len(operand.shape) :]
        return tuple(
            range(min(1, len(r))) if extent == 1 else r
            for extent, r in zip(operand.shape, own, strict=True)
        )

    def read(self, region: Region, reader: Reader) -> Array:
        values = [
            to_mx(contiguous(o.read(self.operand_region(o, region), reader)), o.dtype)
            for o in self.operands
        ]
        return np.broadcast_to(from_mx(_on_cpu(self.function, values)), lengths(region))


@dataclass(frozen=True, eq=False, slots=True)
class AlongRows(Expr):
    """An MLX function of whole rows: leading axes correspond, the last axis is taken whole.

    Attributes:
        name: for printing ("dequantize").
        function: takes one MLX array [..., width of the operand] an operand.
        operands: tensors that agree in all axes but the last.
    """

    name: str
    function: Callable[..., Any]
    operands: tuple[Expr, ...]
    dtype: DType
    shape: tuple[int, ...]

    @property
    def children(self) -> tuple[Expr, ...]:
        return self.operands

    def read(self, region: Region, reader: Reader) -> Array:
        values = [
            to_mx(contiguous(o.read((*region[:-1], range(o.shape[-1])), reader)), o.dtype)
            for o in self.operands
        ]
        return from_mx(_on_cpu(self.function, values))[(..., as_slices(region)[-1])]


@dataclass(frozen=True, eq=False, slots=True)
class Whole(Expr):
    """Any other MLX function: operands are read whole, then the result is cut.

    The only node whose memory grows with the tensor; the plan lists such outputs.
    """

    name: str
    function: Callable[..., Any]
    operands: tuple[Expr, ...]
    dtype: DType
    shape: tuple[int, ...]

    @property
    def children(self) -> tuple[Expr, ...]:
        return self.operands

    def read(self, region: Region, reader: Reader) -> Array:
        values = [to_mx(contiguous(o.read(full(o.shape), reader)), o.dtype) for o in self.operands]
        return from_mx(_on_cpu(self.function, values))[as_slices(region)]


def _on_cpu(function: Callable[..., Any], values: list[Any]) -> Any:
    """Evaluate on MLX's CPU stream: the same rounding everywhere, and float64 works."""
    import mlx.core as mx

    with mx.stream(mx.cpu):
        result = function(*values)
        mx.eval(result)
    return result


def whole_bytes(expr: Expr) -> int:
    """Bytes of the largest tensors that an expression cannot read by region."""
    own = sum(o.nbytes for o in expr.children) if isinstance(expr, Whole) else 0
    return max((own, *(whole_bytes(child) for child in expr.children)))


def _decoded(value: Any, dtype: DType) -> Any:
    """Values of an fp8 bit pattern, which MLX holds as uint8; other arrays as they are."""
    import mlx.core as mx

    if dtype.name == "F8_E4M3":
        return mx.from_fp8(value, dtype=mx.float32)
    if dtype.name == "F8_E5M2":  # the upper byte of a float16
        return mx.left_shift(value.astype(mx.uint16), 8).view(mx.float16)
    if dtype.name == "F8_E8M0":  # an exponent alone; 255 is NaN, 0 a subnormal float32
        return mx.where(value == 255, mx.nan, mx.power(2.0, value.astype(mx.float32) - 127.0))
    return value


def cast(expr: Expr, dtype: DType) -> Expr:
    """The values in another dtype, rounded to nearest even, as MLX's `astype` does.

    fp8 operands (e4m3, e5m2, e8m0) are decoded to the numbers that their bits mean.
    """
    if expr.dtype == dtype:
        return expr
    name, convert, inverse, forward = _conversion(expr.dtype, dtype)
    return Apply(name, convert, (expr,), dtype, expr.shape, inverse=inverse, forward=forward)


@cache
def _conversion(old: DType, new: DType) -> tuple[str, _Unary, _Unary, _Unary]:
    """Name, MLX function, inverse and torch function of a cast; the same ones for all tensors."""

    def convert(value: Any) -> Any:
        import mlx.core as mx

        return _decoded(value, old).astype(getattr(mx, str(new.mx_name)))

    def inverse(value: Any) -> Any:
        return value

    def forward(value: Any) -> Any:
        import torch

        return value.to(getattr(torch, new.torch_name))

    return f"astype {new}", convert, inverse, forward
