"""Writes that go past the page cache.

The kernel takes such writes (O_DIRECT) in aligned blocks only, while pieces of tensors begin and
end anywhere.  Pieces are therefore gathered in aligned chunks of the file; a chunk goes to the disk
when it is full.  It saves the copy into the page cache and leaves that to other programs.
"""

from __future__ import annotations

import errno
import mmap
import os
from contextlib import suppress
from pathlib import Path
from threading import Lock

import numpy as np

__all__ = ["DirectWriter", "write_at"]

_CHUNK = 1 << 20
_MOST = 16  # chunks that wait to be filled; beyond it the oldest is written as it is

_O_DIRECT = getattr(os, "O_DIRECT", 0)  # Linux


def write_at(handle: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of the data at an offset, however many calls that takes."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(handle, view[done:], offset + done)


class _Chunk:
    """An aligned buffer, the stretches of it that are filled, and how many threads fill it."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, _CHUNK)  # page-aligned, as O_DIRECT needs
        self.array = np.frombuffer(self.memory, np.uint8)
        self.clear()

    def clear(self) -> None:
        self.filled: list[tuple[int, int]] = []
        self.count = 0
        self.writers = 0


class DirectWriter:
    """Writes into one file from several threads, past the page cache as far as that goes.

    Where the file system refuses, and for chunks that are never filled, writes are ordinary ones.

    Args:
        path: of the file, which exists.
        handle: open for writing; stays the caller's.
    """

    def __init__(self, path: Path, handle: int) -> None:
        self._handle = handle
        self._direct = -1
        if _O_DIRECT:
            with suppress(OSError):  # not every file system knows it
                self._direct = os.open(path, os.O_WRONLY | _O_DIRECT)
        self._lock = Lock()
        self._chunks: dict[int, _Chunk] = {}
        self._begun: set[int] = set()  # written in part already: the rest follows by itself
        self._free: list[_Chunk] = []

    def write(self, data: memoryview, offset: int) -> None:
        """Take bytes of a place in the file; they are in the file after `flush` at the latest."""
        if self._direct < 0:
            write_at(self._handle, data, offset)
            return
        done = 0
        while done < len(data):
            index, start = divmod(offset + done, _CHUNK)
            part = data[done : done + _CHUNK - start]
            self._fill(index, start, part)
            done += len(part)

    def _fill(self, index: int, start: int, part: memoryview) -> None:
        with self._lock:
            chunk = None if index in self._begun else self._chunk(index)
            if chunk is not None:
                chunk.writers += 1
        if chunk is None:
            write_at(self._handle, part, index * _CHUNK + start)
            return
        chunk.array[start : start + len(part)] = part
        with self._lock:
            chunk.writers -= 1
            chunk.filled.append((start, start + len(part)))
            chunk.count += len(part)
            if chunk.count < _CHUNK:
                return
            del self._chunks[index]
        self._put(chunk.memory, index * _CHUNK)
        with self._lock:
            chunk.clear()
            self._free.append(chunk)

    def _chunk(self, index: int) -> _Chunk | None:
        """The chunk that waits there; a new one if there is room."""
        if index not in self._chunks:
            if len(self._chunks) >= _MOST:
                idle = next((i for i, c in self._chunks.items() if not c.writers), None)
                if idle is None:
                    self._begun.add(index)
                    return None
                self._write_filled(idle)
            self._chunks[index] = self._free.pop() if self._free else _Chunk()
        return self._chunks[index]

    def _put(self, memory: mmap.mmap, offset: int) -> None:
        done = 0
        if self._direct >= 0:
            try:
                done = os.pwrite(self._direct, memory, offset)
            except OSError as error:
                if error.errno != errno.EINVAL:  # other alignment is asked for
                    raise
        write_at(self._handle, memoryview(memory)[done:], offset + done)

    def _write_filled(self, index: int) -> None:
        chunk = self._chunks.pop(index)
        self._begun.add(index)
        for start, stop in chunk.filled:
            write_at(self._handle, chunk.array[start:stop].data, index * _CHUNK + start)
        chunk.clear()
        self._free.append(chunk)

    def flush(self) -> None:
        """Write what waits in chunks that are not full; no thread may write meanwhile."""
        with self._lock:
            for index in list(self._chunks):
                self._write_filled(index)

    def close(self) -> None:
        """Release buffers and the handle of its own; what was not flushed is lost."""
        self._chunks.clear()
        self._free.clear()
        if self._direct >= 0:
            os.close(self._direct)
            self._direct = -1
