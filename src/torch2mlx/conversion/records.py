"""Sizes and hashes of finished files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SHA256", "FileRecord", "record_file", "stays_inside"]

SHA256 = re.compile(r"[0-9a-f]{64}")

_BUFFER = 1 << 20


@dataclass(frozen=True)
class FileRecord:
    """A file's size in bytes and, where it is known, its SHA-256 in hex."""

    size: int
    sha256: str | None = None


def record_file(path: Path, progress: Callable[[int], None] | None = None) -> FileRecord:
    """Size and hash of a file, read in blocks; `progress` hears of the bytes read."""
    digest, size = hashlib.sha256(), 0
    buffer = memoryview(bytearray(_BUFFER))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
            if progress is not None:
                progress(count)
    return FileRecord(size, digest.hexdigest())


def stays_inside(name: str) -> bool:
    """Whether a relative name with forward slashes stays in its folder on every system."""
    parts = name.split("/")
    plain = all(part not in ("", ".", "..") and part.isprintable() for part in parts)
    return plain and "\\" not in name and ":" not in name
