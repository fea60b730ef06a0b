"""Calls as Python expressions, in the notation that a person would choose."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from torch2mlx.compiler.builder import Call, Method, Value
from torch2mlx.compiler.layers import LayerUse
from torch2mlx.compiler.symbolic import SymbolicInt

__all__ = ["ATOM", "Expression", "ExpressionPrinter", "is_runtime", "literal", "symbols_in"]

ATOM = 100
_UNARY, _POWER = 80, 90

Expression = tuple[str, int]
"""Source and the precedence of its outermost operator."""

_BINARY: dict[str, tuple[str, int]] = {
    "add": ("+", 60),
    "subtract": ("-", 60),
    "multiply": ("*", 70),
    "divide": ("/", 70),
    "matmul": ("@", 70),
    "floor_divide": ("//", 70),
    "remainder": ("%", 70),
    "power": ("**", _POWER),
    "bitwise_and": ("&", 56),
    "bitwise_or": ("|", 54),
    "equal": ("==", 50),
    "not_equal": ("!=", 50),
    "less": ("<", 50),
    "less_equal": ("<=", 50),
    "greater": (">", 50),
    "greater_equal": (">=", 50),
}

_SPREAD = ("reshape", "transpose")
"""Methods that take their one argument spread out."""

_METHODS = (
    *_SPREAD,
    *"astype squeeze flatten swapaxes moveaxis sum mean max min prod any all argmax argmin".split(),
    *"var std abs square sqrt rsqrt exp log sin cos".split(),
)
"""Functions of `mlx.core` that read better as methods; each is one of `mx.array` too."""


_BUILTIN = ("math", "max", "min")


def symbols_in(value: Any) -> list[str]:
    """Names of dynamic extents in a call's arguments."""
    if isinstance(value, SymbolicInt):
        tree = ast.parse(value.expression, mode="eval")
        return [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id not in _BUILTIN]
    if isinstance(value, list | tuple):
        return [name for item in value for name in symbols_in(item)]
    if isinstance(value, Mapping):
        return symbols_in(list(value.values()))
    if isinstance(value, slice):
        return symbols_in([value.start, value.stop, value.step])
    return []


def is_runtime(function: Any) -> bool:
    """Whether it is copied into the generated folder."""
    module = getattr(function, "__module__", None) or ""
    return module.startswith("torch2mlx.compiler.runtime")


def literal(value: Any) -> str:
    """Source of a number, string, dtype, or nested list of these."""
    import mlx.core as mx

    if isinstance(value, SymbolicInt):
        text = value.expression
        return text[1:-1] if _wrapped(text) else text
    if isinstance(value, float):
        if math.isinf(value):
            return "mx.inf" if value > 0 else "-mx.inf"
        return "mx.nan" if math.isnan(value) else repr(value)
    if isinstance(value, mx.Dtype):
        name = str(value).removeprefix("mlx.core.")
        return f"mx.{'bool_' if name == 'bool' else name}"
    if isinstance(value, tuple):
        inner = ", ".join(map(literal, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if value is Ellipsis:
        return "..."
    if value is None or isinstance(value, bool | int | str | complex):
        return repr(value)
    raise TypeError(f"{value!r} cannot be written in Python source")


def _wrapped(text: str) -> bool:
    """Whether one pair of parentheses encloses all of it."""
    if not text.startswith("("):
        return False
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0:
            return i == len(text) - 1
    return False


class ExpressionPrinter:
    """Writes calls.

    Args:
        value: source of a value.
        layer: source of the attribute that holds a layer.
        dtype: source of a dtype that the caller decides; None: it is what it says.
    """

    def __init__(
        self,
        value: Callable[[Value], Expression],
        layer: Callable[[LayerUse], str],
        dtype: Callable[[Any], str | None] = lambda _: None,
    ) -> None:
        self.value = value
        self.layer = layer
        self.dtype = dtype
        self.runtime: dict[str, Any] = {}
        self.imports: dict[str, str] = {}

    def call(self, call: Call) -> Expression:
        """Source of a call."""
        function, args, kwargs = call.function, call.args, call.kwargs
        if isinstance(function, LayerUse):
            return f"{self.layer(function)}({self._arguments(args, kwargs)})", ATOM
        name = getattr(function, "__name__", "")
        module = getattr(function, "__module__", "") or ""
        if isinstance(function, Method):
            return self._method(function.name, args, kwargs)
        if function is operator.getitem:
            return f"{self._atom(args[0])}[{self._key(args[1])}]", ATOM
        if module in ("mlx.core", "_operator", "operator"):
            written = self._notation(_OPERATOR_NAMES.get(name, name), args, kwargs)
            if written is not None:
                return written
        if getattr(function, "__qualname__", "").startswith("array."):
            return self._method(name, args, kwargs)
        return f"{self._function(function, name, module)}({self._arguments(args, kwargs)})", ATOM

    def _function(self, function: Any, name: str, module: str) -> str:
        if module.startswith("mlx.core"):
            return f"mx{module.removeprefix('mlx.core')}.{name}"
        if module.startswith("mlx.nn"):
            return f"nn.{name}"
        if is_runtime(function):
            self.runtime[name] = function
            return str(name)
        if module.startswith("mlx_lm."):
            self.imports[name] = module
            return str(name)
        raise TypeError(f"{function!r} is neither of MLX nor of the compiler's runtime")

    def _notation(self, name: str, args: Any, kwargs: Any) -> Expression | None:
        """An operator or a method call, where that is how one would write it."""
        if name in _BINARY and len(args) == 2 and not kwargs:
            if not isinstance(args[0], Value) and not isinstance(args[1], Value):
                return None
            symbol, level = _BINARY[name]
            left, right = self._operand(args[0]), self._operand(args[1])
            strict = level in (50, _POWER)
            a = _enclose(left, level + 1 if strict else level)
            b = _enclose(right, level + 1)
            return f"{a} {symbol} {b}", level
        if name == "negative" and len(args) == 1 and not kwargs and isinstance(args[0], Value):
            return f"-{_enclose(self._operand(args[0]), _UNARY)}", _UNARY
        if name == "expand_dims" and len(args) == 2 and isinstance(args[0], Value) and not kwargs:
            return self._new_axes(args[0], args[1])
        if name == "arange" and not kwargs and len(args) == 4 and args[2] == 1:
            start = [] if type(args[0]) is int and args[0] == 0 else [args[0]]
            dtype = {} if literal(args[3]) == "mx.int32" else {"dtype": args[3]}
            return f"mx.arange({self._arguments([*start, args[1]], dtype)})", ATOM
        if name in _METHODS and args and isinstance(args[0], Value):
            return self._method(name, args, kwargs)
        return None

    def _new_axes(self, value: Value, axes: int | tuple[int, ...]) -> Expression:
        """x[:, None] for a new axis."""
        given = (axes,) if isinstance(axes, int) else axes
        rank = value.ndim + len(given)
        places = sorted(a % rank for a in given)
        if places[-1] == rank - 1 and places[0] > 0:
            leading = rank - len(places)
            # An ellipsis is shorter than a colon for every axis.
            key = ["..."] if places[0] == leading > 1 else []
            start = leading if key else 0
        else:
            key, start = [], 0
        key += ["None" if i in places else ":" for i in range(start, places[-1] + 1)]
        return f"{self._atom(value)}[{', '.join(key)}]", ATOM

    def _method(self, name: str, args: Any, kwargs: Any) -> Expression:
        rest = args[1:]
        if (
            name == "transpose"
            and not kwargs
            and args[0].ndim == 2
            and (not rest or [a % 2 for a in rest[0]] == [1, 0])
        ):
            return f"{self._atom(args[0])}.T", ATOM
        if name in _SPREAD and len(rest) == 1 and isinstance(rest[0], list | tuple) and rest[0]:
            rest = tuple(rest[0])
        return f"{self._atom(args[0])}.{name}({self._arguments(rest, kwargs)})", ATOM

    def _operand(self, value: Any) -> Expression:
        if isinstance(value, Value):
            return self.value(value)
        text = literal(value)
        simple = not isinstance(value, SymbolicInt) or value.expression.isidentifier()
        return text, (_UNARY if text.startswith("-") else ATOM) if simple else 0

    def _atom(self, value: Any) -> str:
        return _enclose(self._operand(value), ATOM)

    def _arguments(self, args: Any, kwargs: Any) -> str:
        named = [f"{k}={_root(v) or self.argument(v)}" for k, v in kwargs.items()]
        return ", ".join([*map(self.argument, args), *named])

    def argument(self, value: Any) -> str:
        """Source of an argument: a value, a literal, or a list of these."""
        if isinstance(value, Value):
            return self.value(value)[0]
        if isinstance(value, list | tuple) and type(value) in (list, tuple):
            inner = ", ".join(map(self.argument, value))
            if isinstance(value, list):
                return f"[{inner}]"
            return f"({inner},)" if len(value) == 1 else f"({inner})"
        if isinstance(value, slice):
            return f"slice({', '.join(map(self.argument, (value.start, value.stop, value.step)))})"
        if isinstance(value, dict):
            inner = ", ".join(f"{k!r}: {self.argument(v)}" for k, v in value.items())
            return f"{{{inner}}}"
        return self.dtype(value) or literal(value)

    def _key(self, key: Any) -> str:
        if isinstance(key, tuple) and key:
            return ", ".join(map(self._key, key)) + ("," if len(key) == 1 else "")
        if isinstance(key, slice):
            bounds = ["" if b is None else self.argument(b) for b in (key.start, key.stop)]
            step = "" if key.step is None else f":{self.argument(key.step)}"
            return ":".join(bounds) + step
        return self.argument(key)


def _root(value: Any) -> str:
    """8**-0.5 for what is exactly that: the scale of attention over heads of 8 numbers."""
    if type(value) is not float or not 0 < value < 1:
        return ""
    width = round(value**-2)
    plain = len(repr(value)) < 8
    return "" if plain or float(width**-0.5) != value else f"{width}**-0.5"


_OPERATOR_NAMES = {
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "divide",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "pow": "power",
    "eq": "equal",
    "ne": "not_equal",
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
    "neg": "negative",
}


def _enclose(expression: Expression, level: int) -> str:
    text, own = expression
    return text if own >= level else f"({text})"
