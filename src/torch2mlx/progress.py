"""How long work tells what it is doing, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """A listener; `torch2mlx.reporting.terminal.Bars` draws, `Silent` does not."""

    def stage(
        self, title: str, total_bytes: int | None = None
    ) -> AbstractContextManager[Callable[[int], None]]:
        """A context manager for one stage that gives a callable to be fed with bytes done."""

    def note(self, text: str) -> None:
        """One line worth reading between stages."""


class Silent:
    """Listens to nothing."""

    @contextmanager
    def stage(self, title: str, total_bytes: int | None = None) -> Iterator[Callable[[int], None]]:
        yield lambda _: None

    def note(self, text: str) -> None:
        pass
