"""What errors of other libraries say, for messages of our own."""

from __future__ import annotations

__all__ = ["first_line"]

_LONGEST = 300  # characters


def first_line(error: BaseException) -> str:
    """The first line of an error with text in it, cut where it is very long; else its type."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)[:_LONGEST]
