"""Numbers computed from extents: no MLX call, only expressions of the generated code."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.registry import Lowering, lowering
from torch2mlx.compiler.symbolic import SymbolicInt, source_of

__all__: list[str] = []

aten = torch.ops.aten


def _expression(function: Callable[..., Any], template: str) -> Lowering:
    def lower(b: Builder, *numbers: Any) -> Any:
        value = function(*(int(n) if isinstance(n, SymbolicInt) else n for n in numbers))
        if not any(isinstance(n, SymbolicInt) for n in numbers):
            return value
        return SymbolicInt(int(value), template.format(*map(source_of, numbers)))

    return lower


for _function, _template in (
    (operator.add, "({} + {})"),
    (operator.sub, "({} - {})"),
    (operator.mul, "({} * {})"),
    (operator.floordiv, "({} // {})"),
    (operator.mod, "({} % {})"),
    (operator.neg, "(-{})"),
    (operator.eq, "({} == {})"),
    (operator.ne, "({} != {})"),
    (operator.lt, "({} < {})"),
    (operator.le, "({} <= {})"),
    (operator.gt, "({} > {})"),
    (operator.ge, "({} >= {})"),
    (operator.and_, "({} & {})"),
    (operator.or_, "({} | {})"),
    (torch.sym_max, "max({}, {})"),
    (torch.sym_min, "min({}, {})"),
    (torch.sym_not, "(not {})"),
):
    lowering(_function)(_expression(_function, _template))


@lowering(torch.sym_ite)
def lower_sym_ite(b: Builder, condition: Any, then: Any, otherwise: Any) -> Any:
    """sym_ite(condition, then, otherwise): a choice that other sizes may decide otherwise."""
    value = then if condition else otherwise
    if not isinstance(condition, SymbolicInt):
        return value
    parts = (source_of(then), source_of(condition), source_of(otherwise))
    return SymbolicInt(int(value), "({} if {} else {})".format(*parts))


@lowering(aten.sym_size.int)
def lower_sym_size(b: Builder, x: Value, dim: int) -> Any:
    """sym_size.int(Tensor self, int dim)."""
    return x.shape[dim]


@lowering(aten.sym_numel.default)
def lower_sym_numel(b: Builder, x: Value) -> Any:
    """sym_numel(Tensor self)."""
    return math.prod(x.shape)
