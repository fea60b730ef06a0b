"""Masks that are causal whatever the inputs are."""

from __future__ import annotations

import mlx.core as mx

from torch2mlx.compiler.builder import Call, Value
from torch2mlx.compiler.codegen.expressions import symbols_in
from torch2mlx.compiler.layers import LayerUse
from torch2mlx.compiler.passes.positions import Affine, Condition, known
from torch2mlx.compiler.passes.rewriting import extents
from torch2mlx.compiler.program import values_in
from torch2mlx.compiler.runtime import attention

__all__ = ["hides_nothing", "is_causal"]

_LARGEST = 1 << 24


def is_causal(mask: Value, symbolic: bool) -> bool:
    """Whether query i sees exactly the keys j ≤ i, and there are as many keys as queries.

    A mask of fixed size that depends on no input or weight is computed.  One whose size is
    dynamic must be a known function of its indices.
    """
    call = mask.call
    found = known(mask)
    if isinstance(found, Condition) and mask.ndim > 1:
        shape = extents(mask, symbolic)
        before = (0,) * (mask.ndim - 2)
        square = shape is not None and shape[-1] == shape[-2]
        return square and found.bound == Affine((*before, 1, -1))
    if call is not None and call.function is attention.causal_mask:
        shape = extents(mask, symbolic)
        queries, keys = call.args
        return repr(queries) == repr(keys) if shape is None else shape[-1] == shape[-2]
    if mask.ndim < 2 or mask.array.shape[-1] != mask.array.shape[-2]:
        return False
    if mask.array.size > _LARGEST or not _fixed(mask):
        return False
    length = mask.array.shape[-1]
    lower = mx.arange(length) <= mx.arange(length)[:, None]
    if mx.issubdtype(mask.dtype, mx.floating):
        # The lowest number hides a key as well as -inf where a query sees any other.
        hidden = mask.array <= mx.array(mx.finfo(mask.dtype).min, mask.dtype)
        return bool(mx.all(mx.where(lower, mask.array == 0, hidden)))
    return mask.dtype == mx.bool_ and bool(mx.all(mask.array == lower))


def hides_nothing(mask: Value) -> bool:
    """Whether every query sees every key."""
    found = known(mask)
    return isinstance(found, Condition) and found.always


def _fixed(value: Value) -> bool:
    """Whether nothing but written numbers goes into a value, so that its array is real."""
    waiting, seen = [value], set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if item.call is None:
            if item.name:
                return False
            continue
        if not _plain(item.call):
            return False
        waiting += values_in((item.call.args, item.call.kwargs))
    return True


def _plain(call: Call) -> bool:
    module = getattr(call.function, "__module__", "") or ""
    random = "random" in module or "sampling" in module
    layer = isinstance(call.function, LayerUse)
    return not (random or layer or symbols_in((call.args, call.kwargs)))
