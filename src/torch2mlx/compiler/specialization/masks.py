"""Masks of transformers while a model is exported: made and left out as in eager mode."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["masks_as_in_eager"]

_NEED_MASKS = ("longt5", "pop2piano", "switch_transformers", "udop")


@contextmanager
def masks_as_in_eager(is_given: Callable[[Any], bool]) -> Iterator[None]:
    """While it lasts, transformers leaves out the masks that its own forward leaves out.

    It never does while it is exported, and where a module attends in both directions another
    result would follow.  A mask that the caller gives is always used.

    Args:
        is_given: whether a tensor follows from inputs.
    """
    masks: Any = sys.modules.get("transformers.masking_utils")
    names = ("is_torchdynamo_exporting", "is_tracing")
    if masks is None or not all(hasattr(masks, name) for name in names):
        yield
        return
    originals = [(name, getattr(masks, name)) for name in names]

    def is_tracing(tensor: Any = None) -> bool:
        return tensor is not None and is_given(tensor)

    try:
        masks.is_torchdynamo_exporting, masks.is_tracing = bool, is_tracing
        with _masks_of_ones():
            yield
    finally:
        for name, original in originals:
            setattr(masks, name, original)


@contextmanager
def _masks_of_ones() -> Iterator[None]:
    """While it lasts, encoders that need a mask make one where none is given, as in eager mode."""
    name = "is_torchdynamo_compiling"
    names = (f"transformers.models.{m}.modeling_{m}" for m in _NEED_MASKS)
    sources: list[Any] = [sys.modules[n] for n in names if hasattr(sys.modules.get(n), name)]
    originals = [getattr(source, name) for source in sources]
    for source in sources:
        setattr(source, name, bool)
    try:
        yield
    finally:
        for source, original in zip(sources, originals, strict=True):
            setattr(source, name, original)
