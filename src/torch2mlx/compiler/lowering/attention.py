"""Scaled dot-product attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.registry import LoweringError, lowering
from torch2mlx.compiler.lowering.types import is_bool, is_floating
from torch2mlx.compiler.runtime import attention
from torch2mlx.compiler.symbolic import source_of

__all__: list[str] = []

aten = torch.ops.aten


@lowering(aten.scaled_dot_product_attention.default)
def lower_scaled_dot_product_attention(
    b: Builder,
    query: Value,
    key: Value,
    value: Value,
    attn_mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(q·kᵀ·scale + mask)·v over (..., heads, length, width).

    A query that may see no key gives 0.  MLX repeats key and value heads by itself.
    """
    if dropout_p > 0:
        raise LoweringError(
            f"scaled_dot_product_attention: dropout_p={dropout_p}; call model.eval()"
        )
    if not is_floating(query.dtype):
        raise LoweringError(f"scaled_dot_product_attention: dtype={query.dtype}")
    rank = max(x.ndim for x in (query, key, value))
    if rank > 4 and query.ndim < rank:
        raise LoweringError("scaled_dot_product_attention: a query with fewer axes than its keys")
    leading = query.shape[:-3]
    q, k, v = (_four(b, x) for x in (query, key, value))
    q, k, v = _same_batch(b, q, k, v)
    mask: Any = None
    if is_causal:
        queries, keys = query.shape[-2], key.shape[-2]
        if source_of(queries) == source_of(keys):
            mask = "causal"
        else:
            mask = b.call(attention.causal_mask, queries, keys)
    elif attn_mask is not None:
        mask = _mask(b, attn_mask, query)
    if mask is not None and isinstance(mask, Value) and not is_bool(mask.dtype):
        mask = b.cast(mask, q.dtype)
    kwargs: dict[str, Any] = {"scale": _scale(query, scale)}
    if mask is not None:
        kwargs["mask"] = mask
    y = b.call(mx.fast.scaled_dot_product_attention, q, k, v, **kwargs)
    if attn_mask is not None:
        y = b.call(attention.zero_masked_rows, y, mask)
    if rank > 4:
        return b.call(mx.unflatten, y, 0, tuple(leading))
    for _ in range(4 - rank):
        y = b.call(mx.squeeze, y, 0)
    return y


def _scale(query: Value, scale: float | None) -> float:
    if scale is not None:
        return scale
    width = query.shape[-1]
    if isinstance(width, int) and source_of(width) != str(int(width)):
        raise LoweringError("scaled_dot_product_attention: a dynamic head width without a scale")
    return float(width**-0.5) if width else 1.0


def _four(b: Builder, x: Value) -> Value:
    """(batch, heads, length, width), whatever the number of leading axes."""
    for _ in range(4 - x.ndim):
        x = b.call(mx.expand_dims, x, 0)
    return b.call(mx.flatten, x, 0, x.ndim - 4) if x.ndim > 4 else x


def _same_batch(b: Builder, q: Value, k: Value, v: Value) -> Sequence[Value]:
    """Torch broadcasts the batch axes, MLX does not."""
    if q.shape[0] == k.shape[0] == v.shape[0] and k.shape[1] == v.shape[1]:
        return q, k, v
    batch = max((x.shape[0] for x in (q, k, v)), key=int)
    heads = max((x.shape[1] for x in (k, v)), key=int)
    sizes = [(batch, q.shape[1]), (batch, heads), (batch, heads)]
    return [
        b.call(mx.broadcast_to, x, (*size, *x.shape[2:]))
        if tuple(x.shape[:2]) != tuple(size)
        else x
        for x, size in zip((q, k, v), sizes, strict=True)
    ]


def _mask(b: Builder, mask: Value, query: Value) -> Value:
    """A mask with the axes that MLX broadcasts to (batch, heads, queries, keys)."""
    if query.ndim > 4 and mask.ndim > 3:
        size = (*query.shape[: query.ndim - 3], *mask.shape[-3:])
        mask = b.call(mx.flatten, b.call(mx.broadcast_to, mask, size), 0, query.ndim - 4)
    return mask


@lowering(aten._scaled_dot_product_flash_attention_for_cpu.default)
def lower_flash_attention_for_cpu(
    b: Builder,
    query: Value,
    key: Value,
    value: Value,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Value | None = None,
    scale: float | None = None,
) -> tuple[Any, Value]:
    """Attention of four axes, and the logarithm of the softmax's denominator."""
    y = lower_scaled_dot_product_attention(
        b, query, key, value, attn_mask, dropout_p, is_causal, scale=scale
    )
    mask = attn_mask
    if is_causal:
        mask = b.call(attention.causal_mask, query.shape[2], key.shape[2])
    return y, b.call(attention.log_sum_exp, query, key, _scale(query, scale), mask)
