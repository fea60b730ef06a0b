"""Extents that are known by an example only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["SymbolicInt", "source_of"]


class SymbolicInt(int):
    """An int with the value of the example and the Python expression that gives the real one.

    Arithmetic keeps the expression, so a lowering that computes with shapes stays right for
    other sizes.  Comparisons use the example's value.
    """

    expression: str

    def __new__(cls, value: int, expression: str) -> SymbolicInt:
        self = super().__new__(cls, value)
        self.expression = expression
        return self

    def __repr__(self) -> str:
        return self.expression

    __hash__ = int.__hash__

    def __neg__(self) -> SymbolicInt:
        return SymbolicInt(-int(self), f"(-{self.expression})")


def source_of(value: int) -> str:
    """Python source of an int, symbolic or not."""
    return value.expression if isinstance(value, SymbolicInt) else str(int(value))


def _binary(name: str, symbol: str, swapped: bool = False) -> Callable[[Any, Any], Any]:
    compute = getattr(int, name)

    def method(self: SymbolicInt, other: Any) -> Any:
        result = compute(int(self), int(other)) if isinstance(other, int) else NotImplemented
        if result is NotImplemented:
            return NotImplemented
        left, right = (other, self) if swapped else (self, other)
        return SymbolicInt(result, f"({source_of(left)} {symbol} {source_of(right)})")

    return method


for _name, _symbol in (
    ("add", "+"),
    ("sub", "-"),
    ("mul", "*"),
    ("floordiv", "//"),
    ("mod", "%"),
):
    setattr(SymbolicInt, f"__{_name}__", _binary(f"__{_name}__", _symbol))
    setattr(SymbolicInt, f"__r{_name}__", _binary(f"__r{_name}__", _symbol, swapped=True))
