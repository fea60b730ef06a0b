"""Resident memory of this process, and what the system has left."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

__all__ = ["Meter", "available_bytes", "peak_resident", "resident_bytes"]

_STATM = Path("/proc/self/statm")
_STATUS = Path("/proc/self/status")
_MEMINFO = Path("/proc/meminfo")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def peak_resident() -> int:
    """Bytes of memory that this process held at most.

    On Linux from /proc, because `getrusage` starts a child at its parent's size.
    """
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """Resident memory of this process now; where the system does not tell, its peak so far."""
    try:
        return int(_STATM.read_bytes().split()[1]) * _PAGE
    except OSError:
        return peak_resident()


def available_bytes() -> int | None:
    """Memory that the system could give to new work, page cache included; None: unknown."""
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


class Meter:
    """How much resident memory has grown since the meter was made.

    Attributes:
        peak: the largest growth that was read, in bytes.
    """

    def __init__(self) -> None:
        self._start = resident_bytes()
        self.peak = 0

    def read(self) -> int:
        """Growth in bytes."""
        growth = resident_bytes() - self._start
        self.peak = max(self.peak, growth)
        return growth
