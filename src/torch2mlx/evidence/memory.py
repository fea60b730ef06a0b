"""Resident memory over the stages of a run, taken by a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType

from torch2mlx.conversion.memory import resident_bytes
from torch2mlx.progress import Progress

__all__ = ["MemoryRecord", "MemoryTrace", "Stage"]

_FIRST_INTERVAL = 0.02  # seconds
_MOST = 240  # readings that are kept


@dataclass(frozen=True)
class Stage:
    """A stage of the run.

    Attributes:
        title: as it was shown.
        start, end: seconds since the run began.
        resident: bytes when it began; a memory limit counts from there.
    """

    title: str
    start: float
    end: float
    resident: int


@dataclass(frozen=True)
class MemoryRecord:
    """Resident memory of a run.

    Attributes:
        times: seconds since it began.
        resident: bytes at these times, each the largest since the time before.
        stages: in their order.
        limit: bytes that the stage "Converting" may add to what was resident when it began.
    """

    times: tuple[float, ...]
    resident: tuple[int, ...]
    stages: tuple[Stage, ...]
    limit: int


class MemoryTrace:
    """A listener that passes everything on and reads resident memory meanwhile.

        with MemoryTrace(progress) as trace:
            work(trace)
            record = trace.record(limit)

    Readings begin 20 ms apart; whenever there are 240, neighbours are joined and the time between
    them doubles, so that any run takes the same room and no peak is lost.
    """

    def __init__(self, listener: Progress) -> None:
        self._listener = listener
        self._start = time.perf_counter()
        self._interval = _FIRST_INTERVAL
        self._readings: list[tuple[float, int]] = []
        self._stages: list[Stage] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryTrace:
        self._read()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    @contextmanager
    def stage(self, title: str, total_bytes: int | None = None) -> Iterator[Callable[[int], None]]:
        begun = Stage(title, self._now(), 0.0, resident_bytes())
        try:
            with self._listener.stage(title, total_bytes) as advance:
                yield advance
        finally:
            self._stages.append(replace(begun, end=self._now()))

    def note(self, text: str) -> None:
        self._listener.note(text)

    def record(self, limit: int) -> MemoryRecord:
        """What was seen so far.

        Args:
            limit: bytes; see `MemoryRecord`.
        """
        self._read()
        with self._lock:
            times, resident = zip(*self._readings, strict=True)
        return MemoryRecord(times, resident, tuple(self._stages), limit)

    def _now(self) -> float:
        return round(time.perf_counter() - self._start, 3)

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self._read()

    def _read(self) -> None:
        with self._lock:
            self._readings.append((self._now(), resident_bytes()))
            if len(self._readings) < _MOST:
                return
            self._interval *= 2
            pairs = zip(self._readings[::2], self._readings[1::2], strict=True)
            self._readings = [(b[0], max(a[1], b[1])) for a, b in pairs]
