"""Extents that are known by an example only."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

__all__ = ["SymbolicInt", "solved", "source_of"]


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

    def __float__(self) -> float:
        """Refused: the number would stay that of the example."""
        raise TypeError(f"a fraction depends on the extent {self.expression}")

    def __truediv__(self, other: Any) -> Any:
        return float(self)

    __rtruediv__ = __truediv__

    def __neg__(self) -> SymbolicInt:
        return SymbolicInt(-int(self), f"(-{self.expression})")


def source_of(value: int) -> str:
    """Python source of an int, symbolic or not."""
    return value.expression if isinstance(value, SymbolicInt) else str(int(value))


def solved(expression: str) -> tuple[str, str] | None:
    """The name in an extent such as "2*length + 1", and a template that finds it from the
    extent: ("length", "({} - 1) // 2"); None if the extent does not tell.
    """
    if expression.isidentifier():
        return expression, "{}"
    names = {n.id for n in ast.walk(ast.parse(expression, mode="eval")) if isinstance(n, ast.Name)}
    if len(names) != 1:
        return None
    name = names.pop()
    code = compile(expression, "<extent>", "eval")
    try:
        at = [eval(code, {"__builtins__": {}}, {name: n}) for n in (0, 1, 2, 5)]
    except (NameError, ZeroDivisionError, AttributeError):
        return None
    offset, factor = at[0], at[1] - at[0]
    if factor < 1 or at[2:] != [offset + 2 * factor, offset + 5 * factor]:
        return None
    template = "{}" if not offset else f"({{}} {'-' if offset > 0 else '+'} {abs(offset)})"
    if factor > 1:
        return name, f"{template} // {factor}"
    return name, template.strip("()")


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
