"""What one process costs: wall and CPU seconds, peak resident memory.

The kernel's own counts for the child (`wait4`), so threads and grandchildren are in and sampling
misses no peak.  On Linux the peak of a fresh child starts at its parent's resident memory, so
whoever calls this must stay small: no numpy, torch or MLX in the measuring process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

__all__ = ["Usage", "flush", "measure", "middle", "warm"]

# ru_maxrss counts KiB on Linux and bytes on macOS.
RSS_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Usage:
    """What a process used.

    Attributes:
        wall, cpu: seconds; `cpu` is user plus system time of all threads.
        rss: peak resident memory in bytes.
        flushed: `wall` and the seconds until what was written is on the disk.
    """

    wall: float
    cpu: float
    rss: int
    flushed: float


def flush(folder: Path) -> float:
    """Seconds until every file below `folder` is on the disk."""
    start = time.perf_counter()
    for path in sorted(folder.rglob("*")) if folder.exists() else ():
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
    return time.perf_counter() - start


def warm(folder: Path) -> None:
    """Read every file below `folder` once, so that each timed run finds it in the page cache."""
    buffer = bytearray(2**23)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def measure(command: Sequence[str], log: Path, output: Path | None = None) -> Usage:
    """Run `command` to its end and say what it used; what it prints goes to `log`.

    `output`, if given, is the folder that it writes: it is flushed afterwards for `flushed`.

    Raises:
        RuntimeError: a non-zero exit status; the message ends with the log's last lines.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("wb") as stream:
        start = time.perf_counter()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise RuntimeError(f"{' '.join(command)}\nexit status {child.returncode}\n{tail}")
    return Usage(
        wall=wall,
        cpu=usage.ru_utime + usage.ru_stime,
        rss=usage.ru_maxrss * RSS_UNIT,
        flushed=wall + (flush(output) if output else 0.0),
    )


def middle(runs: Sequence[Usage]) -> Usage:
    """The median of each figure, and the largest peak."""
    return Usage(
        wall=median(r.wall for r in runs),
        cpu=median(r.cpu for r in runs),
        rss=max(r.rss for r in runs),
        flushed=median(r.flushed for r in runs),
    )
