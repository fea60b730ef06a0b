"""Sizes and hashes of files, as the manifest records them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from torch2mlx.conversion.records import SHA256, FileRecord, record_file

__all__ = ["MANIFEST", "changed_files", "output_records", "source_record", "unrecorded_files"]

MANIFEST = "torch2mlx.json"

# Figures and proof beside the manifest; some differ from run to run.
_BESIDE = "torch2mlx/"

# Made of a folder later, by `torch2mlx report` and `bench`.
_LATER = re.compile(r".*\.html|torch2mlx/bench\.json")

# Texts for people, which are meant to be edited before a model is published.
_TEXTS = re.compile(r".*\.md|license.*|licence.*|notice.*", re.IGNORECASE)


def source_record(path: Path) -> FileRecord:
    """Size of a source file, and its hash where the hub's cache tells it.

    The cache links a file of a snapshot to `blobs/<sha256>` if it is stored in Git LFS.  Others
    are not hashed: reading a checkpoint twice would double the time of a conversion.
    """
    blob = path.resolve()
    known = blob.parent.name == "blobs" and SHA256.fullmatch(blob.name)
    return FileRecord(path.stat().st_size, blob.name if known else None)


def output_records(
    folder: Path, known: Mapping[str, FileRecord] | None = None
) -> dict[str, FileRecord]:
    """Records of the files of an output that programs read, by relative name.

    Left out are the manifest itself, what lies beside it in a folder of its own, and texts such
    as the model card, which people edit.  Files of `known` are not read again.
    """
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return {
        name: (known or {}).get(name) or record_file(folder / name)
        for name in names
        if name != MANIFEST and not name.startswith(_BESIDE) and not _TEXTS.fullmatch(name)
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


def unrecorded_files(
    folder: Path, records: Mapping[str, FileRecord], others: Collection[str] = ()
) -> tuple[str, ...]:
    """Names of files that programs might read and that were not recorded.

    Texts for people, reports, hidden files (of version control, downloads and desktops) and
    Python's caches are left out.

    Args:
        folder: of the output.
        records: what was recorded.
        others: further names that may be there.
    """
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return tuple(
        name
        for name in names
        if name not in records
        and name not in others
        and not _TEXTS.fullmatch(name)
        and not _LATER.fullmatch(name)
        and not any(part[0] == "." or part == "__pycache__" for part in name.split("/"))
    )
