"""Inputs of compiled modules, the same values for both engines."""

from __future__ import annotations

import ast
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from torch2mlx.errors import OptionError

__all__ = ["DEFAULT_EXTENT", "call_arguments", "example_inputs"]

DEFAULT_EXTENT = 8
"""Of an axis that a module leaves open, where the user gives none."""

_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def example_inputs(
    config: Mapping[str, Any], sizes: Mapping[str, int]
) -> dict[str, np.ndarray[Any, Any]]:
    """Random inputs of the shapes that a compiled folder's config.json states.

    Floating-point values are normal, whole numbers 0 or 1, the same in every process.

    Args:
        config: of the folder.
        sizes: extents of open axes by name; others are 8.

    Raises:
        OptionError: the module has several methods, or a shape that is no number.
    """
    if "inputs" not in config:
        raise OptionError("the module has several methods; only a single forward is timed")
    generator = np.random.default_rng(0)
    found = {}
    for entry in config["inputs"]:
        shape = [_extent(extent, sizes) for extent in entry["shape"]]
        kind = str(entry["dtype"])
        if kind == "bool":
            value = generator.random(shape) < 0.5
        elif kind.startswith(("int", "uint")):
            value = generator.integers(0, 2, shape).astype(kind)
        else:  # bfloat16 is unknown to numpy; the engines cast
            value = generator.standard_normal(shape).astype(np.float32)
        found[str(entry["name"])] = value
    return found


def _extent(extent: Any, sizes: Mapping[str, int]) -> int:
    """A number, or the value of a text such as "2*length + 1"."""
    if isinstance(extent, int):
        return extent
    try:
        value = _value(ast.parse(str(extent), mode="eval").body, sizes)
    except (SyntaxError, ValueError, ZeroDivisionError) as error:
        raise OptionError(f"config.json: {extent!r} is no extent of an input") from error
    if value < 0:
        raise OptionError(f"config.json: extent {extent} is {value} here; give --size")
    return value


def _value(node: ast.expr, sizes: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Name):
        return sizes.get(node.id, DEFAULT_EXTENT)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left, sizes), _value(node.right, sizes))
    raise ValueError(ast.dump(node))


def call_arguments(
    function: Callable[..., Any], inputs: Mapping[str, Any]
) -> tuple[Sequence[Any], dict[str, Any]]:
    """Positional and keyword arguments of a call: by name where the function has the names.

    Raises:
        OptionError: it has not, and takes another number of arguments.
    """
    parameters = inspect.signature(function).parameters
    if all(name in parameters for name in inputs):
        return (), dict(inputs)
    plain = [p for p in parameters.values() if p.kind is not p.KEYWORD_ONLY]
    needed = [p for p in plain if p.default is p.empty]
    if not len(needed) <= len(inputs) <= len(plain):
        raise OptionError(
            f"inputs {', '.join(inputs)} lie in lists or dicts; only plain arrays are timed"
        )
    return list(inputs.values()), {}
