"""Positions, masks and attention of a decoder, as caches of mlx-lm tell them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

__all__ = [
    "chunk_mask",
    "first_positions",
    "frequencies",
    "positions",
    "softcapped_attention",
    "visible_keys",
]


def positions(cache: Any, shape: tuple[int, int]) -> mx.array:
    """Positions of the next tokens [batch, length]; in a padded batch each row has its own."""
    offset = cache.offset
    if isinstance(offset, mx.array):
        offset = mx.expand_dims(offset, -1)
    return mx.broadcast_to(mx.maximum(mx.arange(shape[1]) + offset, 0), shape)


def first_positions(cache: Any) -> Any:
    """Position of the next token: a number, or one a row [batch] of a padded batch."""
    offset = cache.offset
    # A cache may add to its array in place.
    return offset + 0 if isinstance(offset, mx.array) else offset


def frequencies(cache: Any, length: int, short: mx.array, long: mx.array, limit: int) -> mx.array:
    """Rotary frequencies of texts of up to `limit` tokens, or of longer ones.

    Raises:
        ValueError: a text passes the limit, or only some of a batch do: keys in the cache were
            turned by the other frequencies.
    """
    offset = cache.offset
    rows: Any = offset.tolist() if isinstance(offset, mx.array) else [offset]
    beyond = {seen + length > limit for seen in rows}
    if len(beyond) > 1 or (True in beyond and any(0 < seen <= limit for seen in rows)):
        raise ValueError(
            f"beyond {limit} tokens this model uses other rotary frequencies, for earlier tokens "
            "as well: give a longer text as one prompt to an empty cache (mlx_lm.generate "
            "--prefill-step-size, at least its length), beside no shorter ones"
        )
    return long if True in beyond else short


def visible_keys(cache: Any, length: int) -> mx.array:
    """Which keys the next tokens see: bool [batch or 1, 1, length, keys]."""
    if isinstance(cache.offset, mx.array):
        mask: mx.array = cache.make_mask(length, return_array=True)
    else:
        seen = cache.offset + length
        mask = mx.arange(seen) <= mx.arange(cache.offset, seen)[:, None]
    return mask.reshape(-1, 1, *mask.shape[-2:])


def chunk_mask(cache: Any, length: int, size: int) -> mx.array:
    """As `visible_keys`, within chunks of `size` tokens, counted from each row's first one."""
    mask = visible_keys(cache, length)
    keys = mx.arange(mask.shape[-1])
    first = getattr(cache, "left_padding", 0)
    if isinstance(first, mx.array):
        first = mx.expand_dims(first, (1, 2))
    chunks = mx.expand_dims((keys - first) // size, -2)
    return mask & (chunks == chunks[..., -length:].swapaxes(-1, -2))


def softcapped_attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    scale: float,
    softcap: float,
    mask: Any = None,
) -> mx.array:
    """Attention whose scores are bounded by softcap·tanh(score / softcap) before the mask."""
    groups = queries.shape[1] // keys.shape[1]
    queries = mx.unflatten(queries * scale, 1, (-1, groups))
    keys, values = mx.expand_dims(keys, 2), mx.expand_dims(values, 2)
    scores = mx.tanh(queries @ keys.swapaxes(-1, -2) / softcap) * softcap
    if isinstance(mask, str):
        length, total = scores.shape[-2:]
        mask = mx.arange(total) <= mx.arange(total - length, total)[:, None]
    if mask is not None:
        mask = mx.expand_dims(mask, 2) if mask.ndim > 2 else mask
        scores = mx.where(mask, scores, mx.array(mx.finfo(scores.dtype).min, scores.dtype))
    return mx.flatten(mx.softmax(scores, axis=-1, precise=True) @ values, 1, 2)
