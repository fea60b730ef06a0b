"""Sizes and hashes of files, as the manifest records them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "MANIFEST",
    "SHA256",
    "FileRecord",
    "changed_files",
    "output_records",
    "record_file",
    "source_record",
]

MANIFEST = "torch2mlx.json"
SHA256 = re.compile(r"[0-9a-f]{64}")

# Texts for people, which are meant to be edited before a model is published.
_TEXTS = re.compile(r".*\.md|license.*|licence.*|notice.*", re.IGNORECASE)


@dataclass(frozen=True)
class FileRecord:
    """A file's size in bytes and, where it is known, its SHA-256 in hex."""

    size: int
    sha256: str | None = None


def record_file(path: Path) -> FileRecord:
    """Size and hash of a file, read in blocks."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(path.stat().st_size, digest)


def source_record(path: Path) -> FileRecord:
    """Size of a source file, and its hash where the hub's cache tells it.

    The cache links a file of a snapshot to `blobs/<sha256>` if it is stored in Git LFS.  Others
    are not hashed: reading a checkpoint twice would double the time of a conversion.
    """
    blob = path.resolve()
    known = blob.parent.name == "blobs" and SHA256.fullmatch(blob.name)
    return FileRecord(path.stat().st_size, blob.name if known else None)


def output_records(folder: Path) -> dict[str, FileRecord]:
    """Records of the files of an output that programs read, by relative name.

    Left out are the manifest itself and texts such as the model card, which people edit.
    """
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return {
        name: record_file(folder / name)
        for name in names
        if name != MANIFEST and not _TEXTS.fullmatch(name)
    }


def changed_files(folder: Path, records: Mapping[str, FileRecord]) -> tuple[str, ...]:
    """Names of files that are missing or are no longer what was recorded."""
    return tuple(
        name
        for name, record in records.items()
        if not (folder / name).is_file()
        or (folder / name).stat().st_size != record.size
        or (record.sha256 is not None and record_file(folder / name).sha256 != record.sha256)
    )
