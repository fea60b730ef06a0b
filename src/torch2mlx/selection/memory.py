"""Memory that a model takes while it runs: weights, caches, and what a prompt needs meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch2mlx.architectures.port import Port

__all__ = ["OVERHEAD", "cache_bytes", "prompt_bytes", "share_of_weights"]

OVERHEAD = 300 * 2**20
"""Bytes that Python, MLX and a tokenizer take beside the model."""

_CHUNK = 2048  # tokens of a prompt that mlx-lm evaluates at once
_FUSED = (64, 80, 128)  # head sizes of Metal's fused attention over several tokens


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


@dataclass(frozen=True)
class _Group:
    """What ports ask of a group of machines while they take their part of the weights."""

    machines: int

    def size(self) -> int:
        return self.machines

    def rank(self) -> int:
        return 0


def share_of_weights(port: Port, machines: int) -> float | None:
    """The share of all weights that each of several machines holds, as the port splits itself.

    Embeddings, norms and the output head are whole on every machine.  Weights are lazy arrays, of
    which nothing is computed.

    Returns:
        None where the port cannot be split so.
    """
    text = port.config.get("text_config")
    merged = {**port.config, **text} if isinstance(text, Mapping) else port.config
    if any(
        isinstance(heads := merged.get(key), int) and heads % machines
        for key in ("num_attention_heads", "num_key_value_heads")
    ):
        return None  # the port would split them all the same, and then fail at the first token
    model: Any = port.build()
    whole = _elements(model)
    try:
        model.shard(_Group(machines))
    except Exception:  # heads or widths that so many machines do not divide
        return None
    return _elements(model) / whole


def _elements(model: Any) -> int:
    from mlx.utils import tree_flatten

    arrays: Any = tree_flatten(model.parameters())
    return sum(int(array.size) for _, array in arrays)


def _arrays(state: Any) -> Iterator[Any]:
    import mlx.core as mx

    if isinstance(state, mx.array):
        yield state
    elif isinstance(state, list | tuple):
        for part in state:
            yield from _arrays(part)


def prompt_bytes(
    config: Mapping[str, Any],
    context: int,
    *,
    device: str = "metal",
    width: int = 2,
    machines: int = 1,
) -> int:
    """Bytes of the largest intermediate results while a prompt is read.

    Of at most 2048 tokens at once, MLX holds about twelve rows of the hidden size, because it
    allocates ahead of what it computes, and two of the feed-forward size, three where a port makes
    gate and up in one product (measured with mlx 0.32 on Llama, Phi-3 and Mixtral shapes of several
    widths); the logits are those of the last token.
    Of several machines each has its part of the heads and of the feed-forward size, and so of four
    of those twelve rows (queries, keys, values, what attention gives).
    Attention adds its scores where no fused kernel takes the head size: in Metal those of 64, 80
    and 128 (mlx/backend/metal/scaled_dot_product_attention.cpp), on a CPU none.

    Args:
        config: config.json.
        context: tokens of the longest text.
        device: "metal" or "cpu".
        width: bytes of a number.
        machines: that the model is split over.
    """
    text = config.get("text_config")
    merged = {**config, **text} if isinstance(text, Mapping) else dict(config)
    hidden = _number(merged, "hidden_size", "n_embd", "d_model", default=4096)
    inner = _number(merged, "intermediate_size", "n_inner", "ffn_dim", default=4 * hidden)
    active = _number(merged, "num_experts_per_tok", "moe_topk", default=0)
    inner = max(inner, active * _number(merged, "moe_intermediate_size", default=inner))
    heads = _number(merged, "num_attention_heads", "n_head", default=32)
    head = _number(merged, "head_dim", default=hidden // max(1, heads))
    words = _number(merged, "vocab_size", default=32_000)
    tokens = min(context, _CHUNK)
    row = 8 * hidden + (4 * hidden + 5 * inner // 2) // machines
    if device == "cpu" or head not in _FUSED:
        row += heads * context // machines
    return width * (tokens * row + 4 * words)


def _number(config: Mapping[str, Any], *keys: str, default: int) -> int:
    return next((config[key] for key in keys if isinstance(config.get(key), int)), default)
