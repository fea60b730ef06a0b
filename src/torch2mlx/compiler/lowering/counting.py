"""Membership and histograms."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.registry import lowering
from torch2mlx.compiler.lowering.types import promote
from torch2mlx.compiler.runtime import counting

__all__: list[str] = []

aten = torch.ops.aten


def _member(b: Builder, x: Any, members: Any, invert: bool) -> Value:
    x, members = promote(b, x, members)
    result: Value
    if isinstance(members, Value) and members.ndim:
        result = b.call(counting.is_member, x, members)
    else:
        result = b.call(mx.equal, x, members)
    if invert:
        result = b.call(mx.logical_not, result)
    return result


@lowering(aten.isin.Tensor_Tensor)
def lower_isin(
    b: Builder,
    elements: Value,
    test_elements: Value,
    *,
    assume_unique: bool = False,
    invert: bool = False,
) -> Value:
    """Whether each element occurs in another tensor."""
    return _member(b, elements, test_elements, invert)


@lowering(aten.isin.Tensor_Scalar)
def lower_isin_scalar(
    b: Builder,
    elements: Value,
    test_element: Any,
    *,
    assume_unique: bool = False,
    invert: bool = False,
) -> Value:
    """Whether each element is a number."""
    return _member(b, elements, test_element, invert)


@lowering(aten.histc.default)
def lower_histc(b: Builder, x: Value, bins: int = 100, min: Any = 0, max: Any = 0) -> Value:  # noqa: A002
    """How many elements fall into each of equal parts of a range."""
    result: Value = b.call(counting.histogram, x, bins, min, max)
    return result
