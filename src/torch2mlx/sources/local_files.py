"""Files of a checkpoint on disk: refused early where damaged, read by position."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torch2mlx.errors import SourceError
from torch2mlx.sources.remote.files import RemotePath

__all__ = [
    "PositionalFiles",
    "is_there",
    "page_cache_holds",
    "read_json_object",
    "read_small",
    "refuse_lfs_pointer",
    "stays_inside",
    "unreadable",
]

_LFS_START = b"version https://git-lfs"

_LARGEST = 100_000_000  # bytes of a small file; the largest tokenizers have 40 MB

_MAX_READ = 1 << 30  # bytes a call; macOS refuses reads of 2 GiB and more

# How transformers writes the floats that JSON lacks.
_TAGGED_FLOATS = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}


def refuse_lfs_pointer(path: Path) -> None:
    """Raise if a file is a Git LFS pointer, no regular file, or cannot be read at all.

    Raises:
        SourceError: one of these; names the file and the remedy.
    """
    start = read_small(path, stop=len(_LFS_START))
    if start == _LFS_START:
        raise SourceError(
            f"{path}: this is a Git LFS pointer, not the file itself; run `git lfs pull` in the "
            "checkpoint's folder or download the file again"
        )


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder; texts that can be no name of one name none."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False


def read_small(path: Path, stop: int | None = None) -> bytes:
    """The content of a small file.

    Args:
        path: of a regular file; a device or a pipe has no end.
        stop: read this many bytes at most; None: all, and no more than small files have.

    Raises:
        SourceError: it is missing, unreadable, something else than a file, or large.
    """
    try:
        if path.exists() and not path.is_file():
            raise SourceError(f"{path}: cannot be read: no regular file; put the file itself there")
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1 if stop is None else stop)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(data) > _LARGEST:
        raise SourceError(f"{path}: larger than {_LARGEST:,} bytes, which no such file is")
    return data


def stays_inside(folder: Path, path: Path) -> bool:
    """Whether a file of a checkpoint's folder is in it, links followed.

    The Hugging Face cache is the exception: its snapshots link to ../../blobs of the same model.
    """
    real = folder.resolve()
    places = [real]
    if real.parent.name == "snapshots":
        places.append(real.parent.parent / "blobs")
    try:
        target = path.resolve()
    except (OSError, RuntimeError):  # a link to itself
        return False
    return any(target.is_relative_to(place) for place in places)


def unreadable(path: Path, error: OSError) -> SourceError:
    """The error for a file that the operating system does not let us read."""
    if isinstance(error, FileNotFoundError):
        return SourceError(f"{path}: no such file; download the checkpoint again")
    reason = error.strerror or str(error)
    remedy = "; check its permissions" if isinstance(error, PermissionError) else ""
    return SourceError(f"{path}: cannot be read: {reason}{remedy}")


def read_json_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds, with transformers' tagged floats made floats.

    Raises:
        SourceError: the file is missing, unreadable, a Git LFS pointer, not JSON or no object.
    """
    refuse_lfs_pointer(path)
    try:
        value = json.loads(read_small(path).decode("utf-8-sig"), object_hook=_untag_float)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not valid JSON: {error}; download the file again") from None
    if not isinstance(value, dict):
        raise SourceError(f"{path}: expected a JSON object, found {_json_type(value)}")
    return value


def _untag_float(value: dict[str, Any]) -> Any:
    if len(value) == 1 and isinstance(value.get("__float__"), str):
        return _TAGGED_FLOATS.get(value["__float__"], value)
    return value


def _json_type(value: Any) -> str:
    if isinstance(value, list):
        return "an array"
    return "null" if value is None else f"a {type(value).__name__}"


def page_cache_holds(nbytes: int) -> bool:
    """Whether so many bytes of files fit into a quarter of the memory that is free for caching.

    What does not fit had better leave the page cache once it is used, before it drives out what
    other programs need.
    """
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return True
    entries = (line.split() for line in text.splitlines())
    available = next((int(e[1]) * 1024 for e in entries if e[0] == "MemAvailable:"), None)
    return available is None or 4 * nbytes <= available


class PositionalFiles:
    """Open files, read at byte offsets; one handle a file, safe to use from several threads.

    Args:
        files: all that will be read, to decide whether the page cache should keep them.
    """

    def __init__(self, files: Sequence[Path] = ()) -> None:
        self._handles: dict[Path, int] = {}
        self._remote: list[RemotePath] = []
        total = sum(path.stat().st_size for path in files if path.exists())
        self._drop = not page_cache_holds(total) and hasattr(os, "posix_fadvise")

    def learn(self, path: Path, spans: Iterable[tuple[int, int]]) -> None:
        """Take note of where the data of a remote file begin and end; local ones need no notes."""
        if isinstance(path, RemotePath) and path.remote is not None:
            path.ahead.learn(path.remote, spans)
            self._remote.append(path)

    def _handle(self, path: Path) -> int:
        if path not in self._handles:
            try:
                handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            except OSError as error:
                raise unreadable(path, error) from error
            if self._handles.setdefault(path, handle) != handle:
                os.close(handle)
        return self._handles[path]

    def fill(self, block: np.ndarray[Any, Any], path: Path, offset: int, tensor: str) -> None:
        """Fill a C-contiguous array with the bytes of a file from `offset` on.

        Raises:
            SourceError: the file cannot be read or ends early; names file and tensor.
        """
        view = block.reshape(-1).view(np.uint8).data
        if isinstance(path, RemotePath) and path.remote is not None:
            path.ahead.read_into(view, path.remote, offset)
            return
        handle = self._handle(path)
        done = 0
        while done < len(view):
            try:
                count = os.preadv(handle, [view[done : done + _MAX_READ]], offset + done)
            except OSError as error:
                raise SourceError(
                    f"{path}: tensor {tensor!r}: cannot be read: {error.strerror or error}"
                ) from error
            if not count:
                raise SourceError(
                    f"{path}: ended inside tensor {tensor!r}; did the file change meanwhile?"
                )
            done += count
        if self._drop:
            os.posix_fadvise(handle, offset, len(view), os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Release the handles, and what is held of remote files."""
        for path in self._remote:
            path.ahead.close()
        while self._handles:
            os.close(self._handles.popitem()[1])
