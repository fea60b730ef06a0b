"""How long the stages of a run took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["timed"]


@contextmanager
def timed(into: dict[str, float], name: str) -> Iterator[None]:
    """Add the wall and CPU seconds of a block to `into`, as NAME_wall_s and NAME_cpu_s."""
    start = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
        for key, value in ((f"{name}_wall_s", wall), (f"{name}_cpu_s", cpu)):
            into[key] = round(into.get(key, 0.0) + value, 3)
