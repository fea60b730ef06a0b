"""Comparisons and logic, elementwise."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.registry import Lowering, lowering
from torch2mlx.compiler.lowering.types import is_bool, promote

__all__: list[str] = []

aten = torch.ops.aten


def _compared_by(function: Any) -> Lowering:
    def lower(b: Builder, x: Value, y: Any) -> Value:
        result: Value = b.call(function, *promote(b, x, y))
        return result

    return lower


for _packet, _function in (
    (aten.eq, mx.equal),
    (aten.ne, mx.not_equal),
    (aten.lt, mx.less),
    (aten.le, mx.less_equal),
    (aten.gt, mx.greater),
    (aten.ge, mx.greater_equal),
):
    lowering(_packet.Tensor, _packet.Scalar)(_compared_by(_function))
