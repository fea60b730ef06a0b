"""Operators that stand for what a decoder keeps between calls; they exist only in programs.

A traced program has one `cache` input, whose extent is the number of tokens seen so far, these
ones included, and the operators up to `attention`.  `placement` puts those of one layer in their
place.  None of them computes in PyTorch.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["NAMESPACE", "define", "operators"]

NAMESPACE = "torch2mlx"

_SCHEMAS = (
    "positions(Tensor ids, Tensor cache) -> Tensor",
    "frequencies(Tensor short, Tensor long, Tensor cache, SymInt length, int limit) -> Tensor",
    "mask(Tensor cache, SymInt batch, SymInt length, int window, int chunk) -> Tensor",
    "update(Tensor keys, Tensor values, Tensor cache, int layer) -> (Tensor, Tensor)",
    "keep_columns(Tensor x, Tensor cache, int layer, int slot, int kernel) -> Tensor",
    "without_padding(Tensor x, Tensor cache, int layer) -> Tensor",
    "mamba2_scan(Tensor x, Tensor cache, int layer, int slot, Tensor dt, Tensor a, Tensor b, "
    "Tensor c, Tensor? d, Tensor? bias, bool softplus, float low, float high) -> Tensor",
    "selective_scan(Tensor x, Tensor cache, int layer, int slot, Tensor dt, Tensor a, Tensor b, "
    "Tensor c, Tensor? d, Tensor? z, Tensor? bias, bool softplus) -> Tensor",
    "delta_rule(Tensor values, Tensor cache, int layer, int slot, Tensor queries, Tensor keys, "
    "Tensor decay, Tensor beta, bool normalized) -> Tensor",
    "lightning_attention(Tensor values, Tensor cache, int layer, int slot, Tensor queries, "
    "Tensor keys, Tensor slopes) -> Tensor",
    "attention(Tensor queries, Tensor keys, Tensor values, Tensor? mask, Tensor? cache, "
    "Tensor? sinks, float scale, float softcap) -> Tensor",
    "layer_cache(Tensor cache, int layer) -> Tensor",
    "layer_mask(Tensor cache, SymInt batch, SymInt length, SymInt total, int window, int chunk, "
    "bool array) -> Tensor",
    "fetch(Tensor keys, Tensor values, Tensor cache, SymInt total) -> (Tensor, Tensor)",
    "expert_rows(Tensor x, Tensor indices) -> (Tensor, Tensor, Tensor, Tensor)",
    "switch_linear(Tensor x, Tensor weight, Tensor? bias, Tensor indices, Tensor in_order, "
    "bool transposed) -> Tensor",
    "token_rows(Tensor x, Tensor order, Tensor indices) -> Tensor",
)


def _positions(ids: Tensor, cache: Tensor) -> Tensor:
    return torch.empty_like(ids)


def _mask(cache: Tensor, batch: int, length: int, window: int, chunk: int) -> Tensor:
    return cache.new_empty((batch, 1, length, cache.shape[0]), dtype=torch.bool)


def _update(keys: Tensor, values: Tensor, cache: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    total = cache.shape[0]
    made = [x.new_empty((*x.shape[:2], total, x.shape[3])) for x in (keys, values)]
    return made[0], made[1]


def _keep_columns(x: Tensor, cache: Tensor, layer: int, slot: int, kernel: int) -> Tensor:
    return x.new_empty((*x.shape[:2], x.shape[2] + kernel))


def _like(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    cache: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    softcap: float,
) -> Tensor:
    return queries.new_empty((*queries.shape[:3], values.shape[3]))


def _layer_cache(cache: Tensor, layer: int) -> Tensor:
    return cache.new_empty(())


def _layer_mask(
    cache: Tensor, batch: int, length: int, total: int, window: int, chunk: int, array: bool
) -> Tensor:
    return cache.new_empty((batch, 1, length, total), dtype=torch.bool)


def _fetch(keys: Tensor, values: Tensor, cache: Tensor, total: int) -> tuple[Tensor, Tensor]:
    made = [x.new_empty((*x.shape[:2], total, x.shape[3])) for x in (keys, values)]
    return made[0], made[1]


def _expert_rows(x: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = indices.numel()
    return (
        x.new_empty((rows, x.shape[-1])),
        indices.new_empty((rows,)),
        indices.new_empty((rows,)),
        indices.new_empty((), dtype=torch.bool),
    )


def _switch_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    indices: Tensor,
    in_order: Tensor,
    transposed: bool,
) -> Tensor:
    return x.new_empty((*indices.shape, weight.shape[2 if transposed else 1]))


def _token_rows(x: Tensor, order: Tensor, indices: Tensor) -> Tensor:
    return x.new_empty((*indices.shape, x.shape[-1]))


_FAKES: tuple[Any, ...] = (
    *(_positions, _like, _mask, _update, _keep_columns, _like, _like, _like, _like, _like),
    *(_attention, _layer_cache, _layer_mask, _fetch, _expert_rows, _switch_linear, _token_rows),
)


@cache
def define() -> Any:
    """Register the operators with PyTorch, once a process."""
    library: Any = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]
    for schema, fake in zip(_SCHEMAS, _FAKES, strict=True):
        library.define(schema)
        torch.library.register_fake(f"{NAMESPACE}::{schema.partition('(')[0]}", fake, lib=library)
    return library


def operators() -> Any:
    """The namespace `torch.ops.torch2mlx`, its operators defined."""
    define()
    return torch.ops.torch2mlx
