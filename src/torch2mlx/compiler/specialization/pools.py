"""Pools of keys that transformers leaves out where they are incomplete: kept, and masked.

How many are complete follows from what is in a cache, so such a selection has no fixed size. Those
that it leaves out are masked by their validity all the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["all_pools"]

_CLASSES = {"Glm5NextTextIndexer": "get_pooled_states"}
"""Classes of transformers, and the method whose last step is the selection."""


@contextmanager
def all_pools(module: torch.nn.Module) -> Iterator[None]:
    """While it lasts, indexers score incomplete pools as well."""
    sources = {sys.modules.get(type(m).__module__) for m in module.modules()}
    found = [
        (getattr(source, name), method)
        for source in sources
        for name, method in _CLASSES.items()
        if hasattr(source, name)
    ]
    originals = [getattr(kind, method) for kind, method in found]
    for (kind, method), original in zip(found, originals, strict=True):
        setattr(kind, method, _unselected(original))
    try:
        yield
    finally:
        for (kind, method), original in zip(found, originals, strict=True):
            setattr(kind, method, original)


def _unselected(original: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _WithoutSelection():
            return original(self, *args, **kwargs)

    return method


class _WithoutSelection(TorchFunctionMode):
    """`x[:, mask]` is x."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__ and isinstance(args[1], tuple) and len(args[1]) == 2:
            rows, mask = args[1]
            masked = isinstance(mask, Tensor) and mask.dtype == torch.bool
            if masked and isinstance(rows, slice) and rows == slice(None):
                return args[0]
        return func(*args, **(kwargs or {}))
