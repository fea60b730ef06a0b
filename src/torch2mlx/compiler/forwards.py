"""Modules that compute by another `forward` while they are traced."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

__all__ = ["forward_replaced", "forwards_replaced"]


@contextmanager
def forward_replaced(module: Any, call: Callable[..., Any]) -> Iterator[None]:
    """While it lasts, calling the module calls this."""
    before = vars(module).get("forward")
    vars(module)["forward"] = call
    try:
        yield
    finally:
        del vars(module)["forward"]
        if before is not None:
            vars(module)["forward"] = before


@contextmanager
def forwards_replaced(modules: Sequence[Any], forward: Callable[..., Any]) -> Iterator[None]:
    """While it lasts, modules have this method in place of their class's."""
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(forward_replaced(module, types.MethodType(forward, module)))
        yield
