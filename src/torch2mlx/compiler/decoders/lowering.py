"""What the operators of a decoder are in terms of mlx-lm."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx_lm.models.base import scaled_dot_product_attention

from torch2mlx.compiler.builder import Builder, Method, Value
from torch2mlx.compiler.decoders.operators import operators
from torch2mlx.compiler.lowering.registry import LoweringError, lowering
from torch2mlx.compiler.runtime import decoding, experts, states

__all__ = ["first_positions", "frequencies", "positions"]

ops = operators()


class _Abstract:
    """A function of the runtime that, while compiling, gives an array of the right shape."""

    def __init__(self, function: Callable[..., Any], infer: Callable[..., Any]) -> None:
        self.__module__ = function.__module__
        self.__name__ = self.__qualname__ = function.__name__
        self.infer = infer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.infer(*args, **kwargs)


positions = _Abstract(decoding.positions, lambda _, shape: mx.zeros(shape, mx.int64))
first_positions = _Abstract(decoding.first_positions, lambda _: mx.zeros((), mx.int32))

frequencies = _Abstract(decoding.frequencies, lambda _, __, short, *___: short)


@lowering(ops.layer_cache.default)
def lower_layer_cache(b: Builder, cache: Value, layer: int) -> Value:
    """layer_cache(Tensor cache, int layer) -> Tensor."""
    made: Value = b.call(operator.getitem, cache, layer)
    made.name = "cache"
    return made


@lowering(ops.positions.default)
def lower_positions(b: Builder, ids: Value, cache: Value) -> Value:
    """positions(Tensor ids, Tensor cache) -> Tensor."""
    made: Value = b.call(positions, cache, tuple(ids.shape))
    return made


@lowering(ops.frequencies.default)
def lower_frequencies(
    b: Builder, short: Value, long: Value, cache: Value, length: int, limit: int
) -> Value:
    """frequencies(Tensor short, Tensor long, Tensor cache, SymInt length, int limit) -> Tensor."""
    made: Value = b.call(frequencies, cache, length, short, long, limit)
    return made


@lowering(ops.fetch.default)
def lower_fetch(b: Builder, keys: Value, values: Value, cache: Value, total: int) -> Any:
    """fetch(Tensor keys, Tensor values, Tensor cache, SymInt total) -> (Tensor, Tensor)."""

    def infer(_: Any, *new: mx.array) -> tuple[mx.array, ...]:
        return tuple(mx.zeros((*x.shape[:2], int(total), x.shape[3]), x.dtype) for x in new)

    return b.call(Method("update_and_fetch", infer), cache, keys, values)


@lowering(ops.layer_mask.default)
def lower_layer_mask(
    b: Builder,
    cache: Value,
    batch: int,
    length: int,
    total: int,
    window: int,
    chunk: int,
    array: bool,
) -> Value:
    """layer_mask(Tensor cache, SymInt batch, SymInt length, SymInt total, int window, ...)."""

    def infer(*_: Any, **__: Any) -> mx.array:
        return mx.zeros((int(batch), 1, int(length), int(total)), mx.bool_)

    if chunk:
        made: Value = b.call(_Abstract(decoding.chunk_mask, infer), cache, length, chunk)
    elif array and window:
        raise LoweringError("a mask with a sliding window in a model that attends by itself")
    elif array:
        made = b.call(_Abstract(decoding.visible_keys, infer), cache, length)
    else:
        size = window or None
        method = Method("make_mask", infer)
        made = b.call(method, cache, length, return_array=False, window_size=size)
    # It may be None or "causal", and its keys may be fewer: nobody reads an extent off it.
    made.dims = (batch, 1, length, int(total))
    made.name = "mask"
    return made


@lowering(ops.attention.default)
def lower_attention(
    b: Builder,
    queries: Value,
    keys: Value,
    values: Value,
    mask: Value | None,
    cache: Value | None,
    sinks: Value | None,
    scale: float,
    softcap: float,
) -> Value:
    """attention(Tensor queries, Tensor keys, Tensor values, Tensor? mask, ...) -> Tensor."""
    given: dict[str, Any] = {"scale": scale, "mask": mask}
    if softcap:
        if sinks is not None:
            raise LoweringError("attention with both a soft cap and sinks")
        function: Any = decoding.softcapped_attention
        given["softcap"] = softcap
    else:
        function = scaled_dot_product_attention
        given["cache"] = cache
        if sinks is not None:
            given["sinks"] = sinks
    made: Value = b.call(function, queries, keys, values, **given)
    return made


@lowering(ops.expert_rows.default)
def lower_expert_rows(b: Builder, x: Value, indices: Value) -> Any:
    """expert_rows(Tensor x, Tensor indices) -> (Tensor, Tensor, Tensor, Tensor)."""

    def infer(x: mx.array, indices: mx.array) -> tuple[mx.array, ...]:
        flat = indices.flatten()
        return mx.zeros((flat.size, x.shape[-1]), x.dtype), flat, flat, mx.array(True)

    made = b.call(_Abstract(experts.expert_rows, infer), x, indices)
    for value, name in zip(made, ("rows", "experts", "order", "in_order"), strict=True):
        value.name = name
    return made


@lowering(ops.token_rows.default)
def lower_token_rows(b: Builder, x: Value, order: Value, indices: Value) -> Value:
    """token_rows(Tensor x, Tensor order, Tensor indices) -> Tensor."""

    def infer(x: mx.array, _: mx.array, indices: mx.array) -> mx.array:
        return mx.zeros((*indices.shape, x.shape[-1]), x.dtype)

    made: Value = b.call(_Abstract(experts.token_rows, infer), x, order, indices)
    return made


@lowering(ops.keep_columns.default)
def lower_keep_columns(
    b: Builder, x: Value, cache: Value, layer: int, slot: int, kernel: int
) -> Value:
    """keep_columns(Tensor x, Tensor cache, int layer, int slot, int kernel) -> Tensor."""

    def infer(_: Any, slot: int, x: mx.array, kernel: int) -> mx.array:
        return mx.zeros((*x.shape[:2], x.shape[2] + kernel), x.dtype)

    made: Value = b.call(_Abstract(states.keep_columns, infer), cache, slot, x, kernel)
    return made


@lowering(ops.without_padding.default)
def lower_without_padding(b: Builder, x: Value, cache: Value, layer: int) -> Value:
    """without_padding(Tensor x, Tensor cache, int layer) -> Tensor."""
    made: Value = b.call(_Abstract(states.without_padding, lambda _, x: x), cache, x)
    return made


def _third(_: Any, __: Any, x: mx.array, *___: Any, **____: Any) -> mx.array:
    return x


@lowering(ops.mamba2_scan.default)
def lower_mamba2_scan(
    b: Builder, x: Value, cache: Value, layer: int, slot: int, *given: Any
) -> Value:
    """mamba2_scan(Tensor x, Tensor cache, int layer, int slot, Tensor dt, Tensor a, ...)."""
    *arrays, softplus, low, high = given
    function = _Abstract(states.mamba2_scan, _third)
    made: Value = b.call(function, cache, slot, x, *arrays, softplus, (low, high))
    return made


@lowering(ops.delta_rule.default)
def lower_delta_rule(
    b: Builder, x: Value, cache: Value, layer: int, slot: int, *given: Any
) -> Value:
    """delta_rule(Tensor values, Tensor cache, int layer, int slot, Tensor queries, ...)."""
    made: Value = b.call(_Abstract(states.delta_rule, _third), cache, slot, x, *given)
    return made


@lowering(ops.lightning_attention.default)
def lower_lightning_attention(
    b: Builder, x: Value, cache: Value, layer: int, slot: int, *given: Any
) -> Value:
    """lightning_attention(Tensor values, Tensor cache, int layer, int slot, Tensor q, ...)."""
    made: Value = b.call(_Abstract(states.lightning_attention, _third), cache, slot, x, *given)
    return made


@lowering(ops.selective_scan.default)
def lower_selective_scan(
    b: Builder, x: Value, cache: Value, layer: int, slot: int, *given: Any
) -> Value:
    """selective_scan(Tensor x, Tensor cache, int layer, int slot, Tensor dt, Tensor a, ...)."""
    made: Value = b.call(_Abstract(states.selective_scan, _third), cache, slot, x, *given)
    return made
