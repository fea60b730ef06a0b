"""Which function lowers which operator; keyed by the operator itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, TypeVar

__all__ = ["Lowering", "LoweringError", "lowering", "lowering_for", "lowering_named", "registered"]

Lowering = Callable[..., Any]
"""(builder, *args, **kwargs of the operator) → Value, or a tuple of Values."""

_F = TypeVar("_F", bound=Callable[..., Any])

_REGISTRY: dict[Any, Lowering] = {}
_NAMED: dict[str, Lowering] = {}


class LoweringError(Exception):
    """An operator, or one of its attributes, has no exact counterpart; the text says which."""


def lowering(*overloads: Any) -> Callable[[_F], _F]:
    """Register a function for `OpOverload`s; a second one for the same overload raises."""

    def register(function: _F) -> _F:
        for overload in overloads:
            if overload in _REGISTRY:
                raise ValueError(f"{overload} is lowered twice")
            _REGISTRY[overload] = function
        return function

    return register


def lowering_named(name: str) -> Callable[[_F], _F]:
    """Register a function for an operator by name, for one that another package defines."""

    def register(function: _F) -> _F:
        _NAMED[name] = function
        return function

    return register


@cache
def _load() -> None:
    from torch2mlx.compiler import lowering as package

    for module in iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")


def registered() -> dict[Any, Lowering]:
    """Every operator that can be lowered."""
    _load()
    return dict(_REGISTRY)


def lowering_for(overload: Any) -> Lowering:
    """The function for an overload; LoweringError if there is none."""
    _load()
    found = _REGISTRY.get(overload) or _NAMED.get(str(overload))
    if found is None:
        raise LoweringError(f"{overload} has no lowering to MLX")
    return found
