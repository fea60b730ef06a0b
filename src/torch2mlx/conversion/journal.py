"""What is finished of an output that is not: enough to go on after any end of a run.

A journal is a text file of JSON lines.  The first says what is being made of what; each other
names a finished file with its size and hash.  A line is written only after the file and its
folder have reached the disk, so after kill -9 or a power loss every line that can be read is true;
a last line that was cut off is ignored, and its file is made again.

    {"journal": 1, "identity": {...}}
    {"file": "output/model-00001-of-00007.safetensors", "size": 4999000123, "sha256": "9f3c..."}
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch2mlx.conversion.identity import differences, same_work
from torch2mlx.conversion.records import SHA256, FileRecord, record_file, stays_inside
from torch2mlx.errors import DestinationError

__all__ = ["Journal", "read_finished", "sync"]

_VERSION = 1
_LARGEST = 64 << 20  # bytes; the identity of a checkpoint of a thousand files has 0.2 MB


class Journal:
    """Finished files of a folder, on the disk before anything relies on them.

        journal = Journal(folder, identity)
        for name in names:
            if name not in journal.finished:
                make(folder / name)
                journal.finish(folder / name)

    Opening checks every file that was recorded against its hash; what is missing or differs is
    not in `finished`.  Each of several processes that fill a folder writes a journal of its own;
    process 0 reads those of all when it opens its own, and again in `join`.

    Args:
        folder: existing folder; journal and files are in it.
        identity: plain JSON values that decide the files' bytes ("options" is only for messages).
        restart: forget what was finished for another identity instead of raising.
        rank: number of this process.
        progress: hears of the bytes of recorded files that were checked.

    Raises:
        DestinationError: files are finished, but for another identity; says what differs.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        *,
        restart: bool = False,
        rank: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.folder = folder
        self.path = folder / (f"journal-{rank}" if rank else "journal")
        self._identity = json.loads(json.dumps(identity))
        self._finished: dict[str, FileRecord] = {}
        if rank == 0:  # the others hear from it what is finished
            for name, record in self._recorded(restart).items():
                if self._is_whole(name, record, progress):
                    self._finished[name] = record
        self._file = self._start()

    def _recorded(self, restart: bool) -> dict[str, FileRecord]:
        recorded: dict[str, FileRecord] = {}
        for path in sorted(self.folder.glob("journal*")):
            found, records = _read(path)
            if not records:
                continue
            if same_work(found, self._identity):
                recorded.update(records)
            elif not restart:
                raise DestinationError(
                    f"{self.folder.name}: an earlier run finished {len(records)} files of this "
                    f"output, but not from the same: "
                    f"{'; '.join(differences(found, self._identity))}. Add --restart to discard "
                    "them and start over"
                )
        return recorded

    def join(self) -> None:
        """Take over what the other processes of this run have recorded."""
        self._finished.update(self._recorded(restart=False))

    def _is_whole(
        self, name: str, record: FileRecord, progress: Callable[[int], None] | None
    ) -> bool:
        path = self.folder / name
        try:
            if path.is_symlink() or path.stat().st_size != record.size:
                return False
            return record_file(path, progress) == record
        except OSError:
            return False

    def _start(self) -> int:
        """Write the journal of this process anew and in one piece, then keep it open.

        Lines of files that are no longer whole go away, and so does a line that was cut off.
        """
        fresh = self.path.with_name(f"new-{self.path.name}")
        lines = [{"journal": _VERSION, "identity": self._identity}]
        lines += [_line(name, record) for name, record in self._finished.items()]
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
        try:
            _append(handle, lines)
            fresh.replace(self.path)
            sync(self.folder)
        except BaseException:
            os.close(handle)
            raise
        return handle

    @property
    def finished(self) -> Mapping[str, FileRecord]:
        """Records of the finished files by their name in the folder."""
        return MappingProxyType(self._finished)

    def knows(self, path: Path) -> bool:
        """Whether a file in the folder is finished."""
        return path.relative_to(self.folder).as_posix() in self._finished

    def finish(self, path: Path, sha256: str | None = None) -> FileRecord:
        """Put a file to disk for good and record it.

        Args:
            path: of the complete file, in the folder.
            sha256: its hash, where it is known; else the file is read once more.
        """
        name = path.relative_to(self.folder).as_posix()
        size = path.stat().st_size
        record = FileRecord(size, sha256) if sha256 is not None else record_file(path)
        sync(path)
        sync(path.parent)
        _append(self._file, [_line(name, record)])
        self._finished[name] = record
        return record

    def close(self) -> None:
        """Release the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _line(name: str, record: FileRecord) -> dict[str, Any]:
    return {"file": name, "size": record.size, "sha256": record.sha256}


def _append(handle: int, lines: list[dict[str, Any]]) -> None:
    view = memoryview("".join(json.dumps(line) + "\n" for line in lines).encode())
    while view:
        view = view[os.write(handle, view) :]
    os.fsync(handle)


def sync(path: Path) -> None:
    """Force a file or a folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(handle)


def read_finished(folder: Path) -> dict[str, FileRecord]:
    """What the journals of a folder record, unchecked."""
    found: dict[str, FileRecord] = {}
    for path in sorted(folder.glob("journal*")):
        found.update(_read(path)[1])
    return found


def _read(path: Path) -> tuple[Any, dict[str, FileRecord]]:
    """Identity and records of a journal; nothing is trusted beyond the first damaged line."""
    records: dict[str, FileRecord] = {}
    identity: Any = None
    for number, entry in enumerate(_entries(path)):
        if number == 0:
            if entry.get("journal") != _VERSION:
                break
            identity = entry.get("identity")
            continue
        name, size, digest = entry.get("file"), entry.get("size"), entry.get("sha256")
        if not (isinstance(name, str) and stays_inside(name)):
            break
        if (
            type(size) is not int
            or size < 0
            or not (isinstance(digest, str) and SHA256.fullmatch(digest))
        ):
            break
        records[name] = FileRecord(size, digest)
    return identity, records


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    try:
        if path.stat().st_size > _LARGEST:
            return
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return
    for line in lines[:-1]:  # what follows the last newline was cut off
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(entry, dict):
            return
        yield entry
