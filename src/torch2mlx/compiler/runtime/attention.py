"""What surrounds `mx.fast.scaled_dot_product_attention` to equal PyTorch's."""

from __future__ import annotations

import mlx.core as mx

__all__ = ["causal_mask", "log_sum_exp", "zero_masked_rows"]


def causal_mask(queries: int, keys: int) -> mx.array:
    """True where query i may see key j: j ≤ i, both counted from the start.

    MLX's "causal" aligns the ends of both, which differs where there are more keys than queries.
    """
    return mx.arange(keys) <= mx.arange(queries)[:, None]


def zero_masked_rows(output: mx.array, mask: mx.array) -> mx.array:
    """Zeros for the queries that may see no key at all; MLX's softmax has no answer for them."""
    seen = mask if mask.dtype == mx.bool_ else mask > -float("inf")
    return mx.where(mx.any(seen, axis=-1, keepdims=True), output, mx.zeros((), output.dtype))


def log_sum_exp(q: mx.array, k: mx.array, scale: float, mask: mx.array | None) -> mx.array:
    """The logarithm of each query's softmax denominator, (..., queries), in float32."""
    q, k = q.astype(mx.float32), k.astype(mx.float32)
    if q.shape[1] != k.shape[1]:
        k = mx.repeat(k, q.shape[1] // k.shape[1], axis=1)
    scores = (q * scale) @ k.swapaxes(-1, -2)
    if mask is not None:
        scores = mx.where(mask, scores, -float("inf")) if mask.dtype == mx.bool_ else scores + mask
    return mx.logsumexp(scores, axis=-1)
