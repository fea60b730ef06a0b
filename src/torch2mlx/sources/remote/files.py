"""One remote file: its size and version, and ranges of it, in spite of dropped connections."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PosixPath
from typing import TYPE_CHECKING, Any

from torch2mlx.errors import SourceError
from torch2mlx.sources.remote.urls import scrubbed

if TYPE_CHECKING:
    from torch2mlx.sources.remote.ahead import ReadAhead

__all__ = [
    "RemoteFile",
    "RemotePath",
    "is_network_error",
    "patiently",
    "reason_of",
    "version_of",
]

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each further attempt

_HEAD = 1 << 16  # bytes; most headers are shorter
# Where the errors of the HTTP libraries under fsspec's file systems come from.
_HTTP_LIBRARIES = ("httpx", "httpcore", "aiohttp", "botocore", "aiobotocore", "urllib3", "requests")
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError)
_TRY_AGAIN = (408, 425, 429, 500)  # of the statuses up to 501, which says: not implemented
# What file systems call the state of a file.
_VERSIONS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created")


def is_network_error(error: Exception) -> bool:
    """True where a server could not be asked.

    Libraries bring errors of their own, known by the name of their module.
    """
    return isinstance(error, OSError) or type(error).__module__.startswith(_HTTP_LIBRARIES)


def reason_of(error: Exception) -> str:
    """The first line of an error, without credentials."""
    return scrubbed((str(error).splitlines() or [""])[0][:300] or type(error).__name__)


def version_of(info: Mapping[str, Any]) -> str:
    """What changes with the content of a file, from fsspec's description of it."""
    return "|".join(f"{key}={info[key]}" for key in _VERSIONS if info.get(key) is not None)


def _is_final(error: Exception) -> bool:
    """Whether asking again would give the same answer."""
    if isinstance(error, _FINAL) or not is_network_error(error):
        return True
    status = getattr(getattr(error, "response", None), "status_code", getattr(error, "status", 0))
    return isinstance(status, int) and 400 <= status <= 501 and status not in _TRY_AGAIN


@dataclass(frozen=True)
class RemoteFile:
    """A file behind an fsspec file system.

    Attributes:
        system: fsspec's file system.
        path: as the file system names it.
        url: for messages, without credentials.
        size: in bytes.
        version: what changes with the content, where the server tells it, else "".
        options: further arguments of each read.
        pinned: the content cannot change, because the path names a commit.
    """

    system: Any
    path: str
    url: str
    size: int
    version: str
    options: Mapping[str, Any] = field(default_factory=dict)
    pinned: bool = False

    @classmethod
    def find(cls, system: Any, path: str, url: str) -> RemoteFile:
        """Ask the server for size and version.

        Raises:
            SourceError: there is no such file, or the server does not tell its size.
        """
        info = patiently(url, lambda: system.info(path))
        size = info.get("size")
        if not isinstance(size, int):
            raise SourceError(
                f"{url}: the server does not tell the file's size, so it cannot be read in parts; "
                "download it"
            )
        return cls(system, path, url, size, version_of(info))

    def fetch(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop); asks again, ever later, when a connection drops.

        Raises:
            SourceError: the file is gone, may not be read, or the connection stays broken.
        """

        def read() -> bytes:
            data = self.system.cat_file(self.path, start=start, end=stop, **self.options)
            if len(data) < stop - start:
                raise ConnectionError(f"{len(data):,} of {stop - start:,} bytes arrived")
            return bytes(data)

        data: bytes = patiently(self.url, read)
        if len(data) > stop - start:
            raise SourceError(f"{self.url}: the server sends no parts of files; download it")
        return data

    @cached_property
    def head(self) -> bytes:
        """The first bytes, which hold a header, or where it ends."""
        return self.fetch(0, min(self.size, _HEAD))

    def require_unchanged(self) -> None:
        """Raise SourceError if the server has another file by now."""
        if self.pinned:
            return
        self.system.invalidate_cache()
        info = patiently(self.url, lambda: self.system.info(self.path))
        if info.get("size") != self.size or version_of(info) != self.version:
            raise SourceError(
                f"{self.url}: changed while it was being read; run the command again once nobody "
                "writes to it"
            )


def patiently(url: str, ask: Callable[[], Any]) -> Any:
    """The answer of a server, asked again after dropped connections and errors of its own.

    Args:
        url: for messages, without credentials.
        ask: asks once.

    Raises:
        SourceError: no such file, no access, or the connection stays broken.
    """
    for pause in (*PAUSES, None):
        try:
            return ask()
        except Exception as error:
            if isinstance(error, FileNotFoundError):
                raise SourceError(f"{url}: no such file, or no access to it") from error
            if isinstance(error, PermissionError):
                raise SourceError(
                    f"{url}: access is refused ({reason_of(error)}); check the credentials"
                ) from error
            if not is_network_error(error):
                raise
            if pause is None or _is_final(error):
                tries = "" if _is_final(error) else f" after {len(PAUSES) + 1} attempts"
                raise SourceError(
                    f"{url}: cannot be reached{tries}: {reason_of(error)}; the same command "
                    "goes on from what is finished"
                ) from error
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


class RemotePath(PosixPath):
    """Where a remote file would lie in the local folder of its checkpoint.

    No file is there: size, time of change (made of the version) and content come from `remote`.
    """

    remote: RemoteFile | None = None
    ahead: ReadAhead

    @classmethod
    def of(cls, path: PosixPath | str, remote: RemoteFile, ahead: ReadAhead) -> RemotePath:
        """The path of a remote file.

        Args:
            path: in the folder with the checkpoint's small files.
            remote: the file.
            ahead: what reads its tensors.
        """
        found = cls(path)
        found.remote, found.ahead = remote, ahead
        return found

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        if self.remote is None:  # a parent, or another path made of this one
            return super().stat(follow_symlinks=follow_symlinks)
        changed = hashlib.sha256(self.remote.version.encode()).digest()[:7]
        plain = (stat.S_IFREG | 0o444, 0, 0, 1, 0, 0, self.remote.size, 0, 0, 0)
        return os.stat_result(plain, {"st_mtime_ns": int.from_bytes(changed, "big")})

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        return self.remote is not None or super().exists()

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return self.remote is not None or super().is_file()

    def open(self, mode: str = "r", buffering: int = -1, *_: Any, **__: Any) -> Any:
        """The file for reading in binary; unbuffered, it is asked anew whether it changed."""
        if self.remote is None or mode != "rb":
            return super().open(mode, buffering, *_, **__)
        if buffering == 0:
            self.remote.require_unchanged()
            return _Ranges(self.remote, b"")
        return io.BufferedReader(_Ranges(self.remote, self.remote.head), _HEAD)


class _Ranges(io.RawIOBase):
    """A remote file as Python's raw files are, its first bytes known."""

    def __init__(self, remote: RemoteFile, head: bytes) -> None:
        self._remote = remote
        self._head = head
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._remote.size}
        self._position = start[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        start = self._position
        stop = min(start + len(buffer), self._remote.size)
        if start < len(self._head):
            data = self._head[start:stop]
        else:
            data = self._remote.fetch(start, stop) if start < stop else b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
