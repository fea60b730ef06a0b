"""Settings from elsewhere: values of any kind, and patterns that may never end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch2mlx.errors import SourceError

__all__ = ["foreign_values", "matches"]

_SECONDS = 1.0  # for one pattern and one name; the longest real ones take microseconds
_KINDS = (
    *(TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError),
    RecursionError,
)


@contextmanager
def foreign_values(where: str, remedy: str) -> Iterator[None]:
    """Tell what values that no library writes lead to; for code that checks the usual mistakes.

    Args:
        where: what holds the values.
        remedy: what to do.

    Raises:
        SourceError: the block failed as it does with values of another kind or size.
    """
    try:
        yield
    except _KINDS as error:
        raise SourceError(
            f"{where}: holds a value of a kind or size that does not fit "
            f"({type(error).__name__}: {str(error)[:200]}); {remedy}"
        ) from error


def matches(pattern: object, name: str, where: str) -> bool:
    """Whether a regular expression of a checkpoint fits the beginning of a module's name.

    Raises:
        SourceError: it is no regular expression, or takes forever.
    """
    import regex

    try:
        return regex.match(str(pattern), name, timeout=_SECONDS) is not None
    except (regex.error, TimeoutError, RecursionError, OverflowError, MemoryError) as error:
        reason = "takes too long" if isinstance(error, TimeoutError) else f"is none: {error}"
        raise SourceError(
            f"{where}: the regular expression {str(pattern)[:80]!r} {reason}; correct it"
        ) from error
