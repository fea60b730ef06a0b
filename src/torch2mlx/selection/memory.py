"""Memory that a model takes while it runs: weights, caches, and what a prompt needs meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch2mlx.architectures.port import Port

__all__ = ["OVERHEAD", "cache_bytes", "prompt_bytes"]

OVERHEAD = 300 * 2**20
"""Bytes that Python, MLX and a tokenizer take beside the model."""

_CHUNK = 2048  # tokens of a prompt that mlx-lm evaluates at once


def cache_bytes(port: Port, context: int) -> int | None:
    """Bytes of the port's caches after `context` tokens of one text, in 16-bit floats.

    The port runs on lazy arrays: MLX infers the shapes of its caches and computes nothing.

    Returns:
        None where the port's caches cannot be told without computing.
    """
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    model: Any = port.build()
    try:
        cache = make_prompt_cache(model)
        # The last token alone: caches of a window shrink to it only then.
        for tokens in filter(None, (context - 1, 1)):
            model(mx.zeros((1, tokens), mx.int32), cache=cache)
        arrays = [array for entry in cache for array in _arrays(entry.state)]
    except Exception:  # a port may look at values, which do not exist yet
        return None
    return sum(2 * int(array.size) for array in arrays)


def _arrays(state: Any) -> Iterator[Any]:
    import mlx.core as mx

    if isinstance(state, mx.array):
        yield state
    elif isinstance(state, list | tuple):
        for part in state:
            yield from _arrays(part)


def prompt_bytes(config: Mapping[str, Any], context: int) -> int:
    """Bytes of the largest intermediate results while a prompt is read.

    A block's feed-forward part holds its input, two hidden products and the result for each of
    at most 2048 tokens at once; the logits are those of the last token.
    """
    text = config.get("text_config")
    merged = {**config, **text} if isinstance(text, Mapping) else dict(config)
    hidden = _number(merged, "hidden_size", "n_embd", "d_model", default=4096)
    inner = _number(merged, "intermediate_size", "n_inner", "ffn_dim", default=4 * hidden)
    words = _number(merged, "vocab_size", default=32_000)
    tokens = min(context, _CHUNK)
    return 2 * (tokens * (4 * hidden + 3 * inner) + 4 * words)


def _number(config: Mapping[str, Any], *keys: str, default: int) -> int:
    return next((config[key] for key in keys if isinstance(config.get(key), int)), default)
