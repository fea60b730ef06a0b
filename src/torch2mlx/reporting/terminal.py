"""What a person sees in the terminal: progress bars on stderr, results as tables on stdout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

__all__ = ["Bars", "format_bytes"]


def format_bytes(count: float) -> str:
    """1536000 → "1.54 MB" (decimal units)."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


class Bars:
    """Progress bars with bytes, rate and remaining time; plain lines when not on a terminal."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)

    @contextmanager
    def stage(self, title: str, total_bytes: int | None = None) -> Iterator[Callable[[int], None]]:
        columns = (
            (
                TextColumn("{task.description}"), BarColumn(), DownloadColumn(),
                TransferSpeedColumn(), TimeRemainingColumn(),
            )
            if total_bytes is not None
            else (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        )  # fmt: skip
        if not self.console.is_terminal:
            self.console.print(title)
            yield lambda _: None
            return
        with Progress(*columns, console=self.console) as bars:
            task = bars.add_task(title, total=total_bytes)
            yield lambda count: bars.advance(task, count)

    def note(self, text: str) -> None:
        self.console.print(f"  {text}", style="dim", highlight=False)
