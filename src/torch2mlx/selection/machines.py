"""What Macs there are, by memory, and how much of it the GPU may use."""

from __future__ import annotations

__all__ = ["MAC_MEMORY", "gpu_limit", "smallest_mac"]

MAC_MEMORY = (8, 16, 18, 24, 32, 36, 48, 64, 96, 128, 192, 256, 512)
"""Unified memory of Macs with Apple silicon, in GB of 2^30 bytes."""


def gpu_limit(memory: int) -> int:
    """Bytes that macOS lets the GPU of a Mac use, unless `iogpu.wired_limit_mb` says otherwise.

    What Metal reports as `recommendedMaxWorkingSetSize`: two thirds of the memory up to 36 GB,
    three quarters above.

    Args:
        memory: of the Mac, in GB.
    """
    share = 2 / 3 if memory <= 36 else 3 / 4
    return int(memory * share * 2**30)


def smallest_mac(need: int) -> int | None:
    """GB of the smallest Mac whose GPU may use `need` bytes; None: there is none."""
    return next((memory for memory in MAC_MEMORY if gpu_limit(memory) >= need), None)
