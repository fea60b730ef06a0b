"""What the system tells of itself: memory, energy, load and heat."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["EnergyMeter", "conditions", "processor_name"]

_POWERCAP = Path("/sys/class/powercap")
_HOT = 90  # degrees Celsius at which processors slow down


def processor_name() -> str:
    """What the processor calls itself."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        name = _output("/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string")
        if name:
            return name
    return platform.processor() or platform.machine()


class EnergyMeter:
    """Joules of the processor packages, from Linux's RAPL counters.

    Attributes:
        reason: why there is no reading; None where there is.
    """

    def __init__(self, folder: Path = _POWERCAP) -> None:
        # intel-rapl:0 is a package; intel-rapl:0:0 is a part of it that it counts already.
        zones = [z for z in sorted(folder.glob("intel-rapl:*")) if z.name.count(":") == 1]
        self._zones: list[Path] = []
        self.reason: str | None = None
        if not zones:
            self.reason = "the system gives no energy counter to this user"
            if sys.platform == "darwin":
                self.reason = "macOS tells energy to root alone (powermetrics)"
        for zone in zones:
            try:
                int((zone / "energy_uj").read_text())
            except (OSError, ValueError):
                self.reason = f"{zone / 'energy_uj'} cannot be read by this user"
            else:
                self._zones.append(zone)

    def read(self) -> list[int]:
        """Microjoules of each package since some moment; [] where nothing can be read."""
        if self.reason is not None:
            return []
        return [int((zone / "energy_uj").read_text()) for zone in self._zones]

    def joules_since(self, before: list[int]) -> float:
        """Joules since a reading; counters that began anew at their end are understood."""
        total = 0
        for zone, start, now in zip(self._zones, before, self.read(), strict=True):
            span = now - start
            if span < 0:
                span += int((zone / "max_energy_range_uj").read_text())
            total += span
        return total / 1e6


def conditions() -> dict[str, Any]:
    """Processor, load and what may disturb a measurement now."""
    cores = os.cpu_count() or 1
    load: float | None = None
    with suppress(OSError):
        load = round(os.getloadavg()[0], 2)
    notes = []
    if load is not None and load > 0.5 * cores:
        notes.append(
            f"load average {load} on {cores} cores: other programs ran; compare rows with each "
            "other, not with figures from elsewhere"
        )
    hottest = _temperature()
    if hottest is not None and hottest >= _HOT:
        notes.append(f"the processor is at {hottest:.0f} degrees Celsius and may slow down")
    if sys.platform == "darwin":
        limits = _output("/usr/bin/pmset", "-g", "therm") or ""
        notes += [line.strip() for line in limits.splitlines() if "Speed_Limit" in line]
    return {"processor": processor_name(), "cores": cores, "load": load, "notes": notes}


def _temperature() -> float | None:
    found = []
    for path in Path("/sys/class/thermal").glob("thermal_zone*/temp"):
        with suppress(OSError, ValueError):
            found.append(int(path.read_text()) / 1000)
    return max(found, default=None)


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
