"""A weight file in work: pieces go to their places, the hash and the disk keep up."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np

from torch2mlx.conversion.direct import DirectWriter, write_at
from torch2mlx.errors import DestinationError
from torch2mlx.planning.shards import ShardPlan

__all__ = ["ShardFile"]

Array = np.ndarray[Any, Any]

# Written bytes wait this long for the disk.  Little enough that the last sync, which cannot be
# interrupted, ends soon, and that dirty pages do not fill the memory of a small container.
_SYNC = 64 << 20
_BACKLOG = 256 << 20
_BUFFER = 1 << 20

_datasync = getattr(os, "fdatasync", os.fsync)


class ShardFile:
    """One file of a plan, written in pieces by any thread.

    Args:
        path: of the file, which must not exist.
        shard: its header and size.
        syncer: runs the calls that wait for the disk.
        uncached: whether the file should keep out of the page cache.

    Raises:
        DestinationError: the disk is full or cannot be written.
    """

    def __init__(self, path: Path, shard: ShardPlan, syncer: Executor, uncached: bool) -> None:
        self.path = path
        self.shard = shard
        self._syncer = syncer
        self._drop = uncached and hasattr(os, "posix_fadvise")
        self._writer: DirectWriter | None = None
        self._digest = hashlib.sha256(shard.header)
        self._hashed = len(shard.header)
        self._unsynced = 0
        self._sync: Future[None] | None = None
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except OSError as error:
            raise self._error(error) from error
        try:
            os.ftruncate(self._handle, shard.nbytes)
            if uncached:
                self._writer = DirectWriter(path, self._handle)
            self._write(memoryview(shard.header), 0)
        except OSError as error:
            self.close()
            raise self._error(error) from error

    def write(self, pieces: Iterable[tuple[int, Array]]) -> None:
        """Write arrays at their offsets; safe from several threads at once."""
        try:
            for offset, array in pieces:
                self._write(_octets(array), offset)
        except OSError as error:
            raise self._error(error) from error

    def _write(self, data: memoryview, offset: int) -> None:
        if self._writer is None:
            write_at(self._handle, data, offset)
        else:
            self._writer.write(data, offset)

    def follow(self, pieces: Iterable[tuple[int, Array]]) -> int:
        """Take note of written pieces, in file order as far as possible; returns their bytes.

        What follows on the hashed part of the file is hashed from memory.
        """
        count = 0
        for offset, array in pieces:
            data = _octets(array)
            count += len(data)
            if offset == self._hashed:
                self._digest.update(data)
                self._hashed += len(data)
        self._unsynced += count
        if self._unsynced >= _SYNC and (self._sync is None or self._sync.done()):
            self._start_sync()
        elif self._unsynced >= _BACKLOG:
            self._wait()
        return count

    def finish(self) -> str:
        """Hash the rest, wait for the disk, close the file; returns the SHA-256 in hex."""
        try:
            self._wait()
            if self._writer is not None:
                self._writer.flush()
            self._start_sync()
            buffer = memoryview(bytearray(_BUFFER))
            while self._hashed < self.shard.nbytes:
                left = self.shard.nbytes - self._hashed
                count = os.preadv(self._handle, [buffer[:left]], self._hashed)
                if not count:
                    raise OSError(errno.EIO, "the file lost its end")
                self._digest.update(buffer[:count])
                self._hashed += count
        except OSError as error:
            raise self._error(error) from error
        self._wait()
        self.close()
        return self._digest.hexdigest()

    def close(self) -> None:
        """Release the file, finished or not; no thread may write to it any more."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _start_sync(self) -> None:
        self._wait()
        self._unsynced = 0
        self._sync = self._syncer.submit(self._to_disk, self._hashed)

    def _to_disk(self, hashed: int) -> None:
        _datasync(self._handle)
        if self._drop:
            os.posix_fadvise(self._handle, 0, hashed, os.POSIX_FADV_DONTNEED)

    def _wait(self) -> None:
        if self._sync is not None:
            try:
                self._sync.result()
            except OSError as error:
                raise self._error(error) from error
            finally:
                self._sync = None

    def _error(self, error: OSError) -> DestinationError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DestinationError(
                f"{self.path.name}: the disk is full; free space or choose another disk"
            )
        return DestinationError(f"{self.path.name}: cannot be written: {error.strerror or error}")


def _octets(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
