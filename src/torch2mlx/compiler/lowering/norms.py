"""Norms of vectors."""

from __future__ import annotations

from typing import Any

import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.reductions import Dims, axis_argument, in_dtype
from torch2mlx.compiler.lowering.registry import LoweringError, lowering
from torch2mlx.compiler.runtime import reductions as rt

__all__: list[str] = []

aten = torch.ops.aten


def _vector_norm(b: Builder, x: Value, order: Any, dim: Dims, keepdim: bool) -> Any:
    kwargs: dict[str, Any] = {}
    axis = axis_argument(x, dim)
    if axis is not None:
        kwargs["axis"] = axis
    if keepdim:
        kwargs["keepdims"] = True
    return b.call(rt.vector_norm, x, float(order), **kwargs)


@lowering(aten.linalg_vector_norm.default)
def lower_vector_norm(
    b: Builder,
    x: Value,
    order: Any = 2,
    dim: Dims = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Any:
    """linalg_vector_norm(Tensor self, Scalar ord=2, int[1]? dim=None, bool keepdim, dtype)."""
    return _vector_norm(b, in_dtype(b, x, dtype), order, dim, keepdim)


@lowering(aten.linalg_norm.default)
def lower_linalg_norm(
    b: Builder,
    x: Value,
    order: Any = None,
    dim: Dims = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Any:
    """linalg_norm(Tensor self, Scalar? ord=None, int[1]? dim=None, bool keepdim, dtype).

    Without an order the 2-norm of all elements; with one, a matrix norm of two dimensions is
    refused.
    """
    x = in_dtype(b, x, dtype)
    several = (dim is None and x.ndim == 2) or (isinstance(dim, list | tuple) and len(dim) == 2)
    if order is not None and several:
        raise LoweringError(f"aten.linalg_norm: ord={order} of a matrix")
    return _vector_norm(b, x, 2 if order is None else order, dim, keepdim)


@lowering(
    aten.norm.Scalar,
    aten.norm.ScalarOpt_dim,
    aten.norm.ScalarOpt_dtype,
    aten.norm.ScalarOpt_dim_dtype,
)
def lower_norm(
    b: Builder,
    x: Value,
    p: Any = 2,
    dim: Dims = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Any:
    """norm(Tensor self, Scalar? p, int[1] dim, bool keepdim=False, *, ScalarType dtype)."""
    return _vector_norm(b, in_dtype(b, x, dtype), 2 if p is None else p, dim, keepdim)
