"""Tokens in the order of their experts, so that a kernel reads each expert once."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

__all__ = ["expert_rows", "token_rows"]


def expert_rows(x: mx.array, indices: mx.array) -> tuple[mx.array, mx.array, Any, bool]:
    """One row for each expert that each token goes to.

    Args:
        x: [..., width].
        indices: of experts, [..., k].

    Returns:
        rows [tokens·k, width] (a single one where all are equal), their experts [tokens·k], what
        brings them back, and whether the experts are in order: sorting pays from 64 rows on.
    """
    experts, count = indices.flatten(), indices.shape[-1]
    x = x.reshape(-1, x.shape[-1])
    if experts.size < 64:
        return (x if x.shape[0] == 1 else mx.repeat(x, count, axis=0)), experts, None, False
    order = mx.argsort(experts)
    return x[order // count], experts[order], mx.argsort(order), True


def token_rows(x: mx.array, order: Any, indices: mx.array) -> mx.array:
    """Rows [tokens·k, width] as [..., k, width], token by token again."""
    x = x if order is None else x[order]
    return x.reshape(*indices.shape, x.shape[-1])
