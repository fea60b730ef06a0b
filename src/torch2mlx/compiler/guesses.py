"""Branches on the values of tensors: noted, and taken one way so that export goes on."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["guessing"]

_METHODS = ("__bool__", "__int__", "__index__", "__float__", "__torch_function__")
_PACKAGE = str(Path(__file__).parents[1])


@contextmanager
def guessing(reasons: list[str]) -> Iterator[None]:
    """While it lasts, numbers that only the data tell are guessed where Python asks for them.

    Args:
        reasons: gets the place of each, "file:line: a branch on the values of a tensor (code)".
    """
    import torch

    asked: list[tuple[Any, str, Any, str]] = [
        (torch.Tensor, "__bool__", True, "a branch on the values of a tensor"),
        (torch.SymBool, "__bool__", True, "a branch on a number out of a tensor's data"),
        (torch.Tensor, "__int__", 1, "a Python number out of a tensor's data"),
        (torch.Tensor, "__index__", 1, "a Python number out of a tensor's data"),
        (torch.Tensor, "__float__", 1.0, "a Python number out of a tensor's data"),
        (torch.SymInt, "__int__", 1, "a Python number out of a tensor's data"),
        (torch.SymInt, "__index__", 1, "a Python number out of a tensor's data"),
        (torch.SymFloat, "__float__", 1.0, "a Python number out of a tensor's data"),
    ]
    originals = [(kind, name, getattr(kind, name)) for kind, name, *_ in asked]

    def patched(original: Any, guess: Any, what: str) -> Any:
        def method(self: Any) -> Any:
            try:
                return original(self)
            except Exception:
                place = _place()
                if not place:  # asked by torch itself
                    raise
                text = f"{place[0]}: {what} ({place[1]})"
                if not any(reason.startswith(f"{place[0]}: ") for reason in reasons):
                    reasons.append(text)
                return guess

        return method

    try:
        for (kind, name, guess, what), (_, _, original) in zip(asked, originals, strict=True):
            setattr(kind, name, patched(original, guess, what))
        yield
    finally:
        for kind, name, original in originals:
            setattr(kind, name, original)


def _place() -> tuple[str, str] | None:
    """`file:line` and code of the user's statement that asks, if it is the one that does."""
    import torch

    folder = str(Path(torch.__file__).parent)
    for frame in reversed(traceback.extract_stack()):
        if frame.filename.startswith((_PACKAGE, "<")):
            continue
        if frame.filename.startswith(folder):
            # A method of Tensor may be between; anything else is torch's own question.
            if frame.name in (
                "__bool__",
                "__int__",
                "__index__",
                "__float__",
                "__torch_function__",
            ):
                continue
            if "/nn/modules/" not in frame.filename and "/overrides" not in frame.filename:
                return None
        return f"{frame.filename}:{frame.lineno}", (frame.line or "").strip()
    return None
