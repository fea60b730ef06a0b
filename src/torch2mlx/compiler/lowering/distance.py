"""Distances and similarities of vectors."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.registry import LoweringError, lowering
from torch2mlx.compiler.lowering.types import is_floating, promote
from torch2mlx.compiler.runtime import distances

__all__: list[str] = []

aten = torch.ops.aten


def _require_floating(name: str, *tensors: Value) -> None:
    for x in tensors:
        if not is_floating(x.dtype):
            raise LoweringError(f"{name}: dtype={x.dtype}")


@lowering(aten.cdist.default, aten._cdist_forward.default)
def lower_cdist(
    b: Builder, x: Value, y: Value, p: float = 2.0, compute_mode: int | None = None
) -> Any:
    """cdist(x1, x2, p); compute_mode only chooses how torch computes it."""
    _require_floating("cdist", x, y)
    return b.call(distances.pairwise_distances, *promote(b, x, y), p)


@lowering(aten._euclidean_dist.default)
def lower_euclidean_dist(b: Builder, x: Value, y: Value) -> Any:
    """Cdist with p=2."""
    return lower_cdist(b, x, y)


@lowering(aten.pdist.default, aten._pdist_forward.default)
def lower_pdist(b: Builder, x: Value, p: float = 2.0) -> Any:
    """pdist(input, p): the distances between the rows i < j."""
    _require_floating("pdist", x)
    return b.call(distances.condensed_distances, x, p)


@lowering(aten.pairwise_distance.default)
def lower_pairwise_distance(
    b: Builder, x: Value, y: Value, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Any:
    """The p-norm of x1 - x2 + eps over the last axis."""
    _require_floating("pairwise_distance", x, y)
    x, y = promote(b, x, y)
    difference = b.call(mx.add, b.call(mx.subtract, x, y), eps)
    return b.call(distances.minkowski_norm, difference, p, keepdim)


@lowering(aten.cosine_similarity.default)
def lower_cosine_similarity(b: Builder, x: Value, y: Value, dim: int = 1, eps: float = 1e-8) -> Any:
    """cosine_similarity(x1, x2, dim, eps) of broadcast tensors."""
    x, y = promote(b, x, y)
    _require_floating("cosine_similarity", x)
    if tuple(x.shape) != tuple(y.shape):
        x, y = b.call(mx.broadcast_arrays, x, y)
    dtype = x.dtype
    similarity = b.call(
        distances.cosine_similarity,
        b.cast(x, mx.float32),
        b.cast(y, mx.float32),
        dim,
        eps,
    )
    return b.cast(similarity, dtype)
