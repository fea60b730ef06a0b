"""What a person sees in the terminal: progress bars on stderr, results as tables on stdout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

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

_EVERY = 30  # seconds between the lines of a stage in a log
_AT_ONCE = 1.0


def format_bytes(count: float) -> str:
    """1536000 → "1.54 MB" (decimal units)."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _duration(seconds: float) -> str:
    """90 → "2 min"."""
    if seconds < 60:
        return f"{max(0, seconds):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


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
            yield self._lines(title, total_bytes)
            return
        with Progress(*columns, console=self.console) as bars:
            task = bars.add_task(title, total=total_bytes)
            yield lambda count: bars.advance(task, count)

    def _lines(self, title: str, total: int | None) -> Callable[[int], None]:
        """Tells a log every half minute how long a stage will take."""
        begin = last = monotonic()
        done = before = 0

        def advance(count: int) -> None:
            nonlocal done, before, last
            done += count
            now = monotonic()
            if now - begin < _AT_ONCE:  # an earlier run had done it
                before = done
            elif total and now - last >= _EVERY:
                last = now
                left = (total - done) * (now - begin) / max(1, done - before)
                self.console.print(
                    f"{title}: {min(1, done / total):.0%}, about {_duration(left)} left",
                    highlight=False,
                )

        return advance

    def note(self, text: str) -> None:
        self.console.print(f"  {text}", style="dim", highlight=False)
