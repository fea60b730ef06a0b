"""Tensors of remote files in memory, a few segments at a time, fetched ahead of the readers.

A file is cut at the borders of its tensors: small neighbours share a segment, large tensors have
several.  So nothing is fetched that nobody asked for, and whoever reads a tensor from its beginning
finds the next segments under way.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from torch2mlx.sources.remote.files import RemoteFile

__all__ = ["ReadAhead", "cut"]

SEGMENT = 4 << 20  # bytes
_HELD = 24  # segments in memory, some 100 MB
_AHEAD = 3  # segments of the same tensor
_CONNECTIONS = 8


def cut(spans: Iterable[tuple[int, int]], segment: int = SEGMENT) -> list[tuple[int, int, int]]:
    """(start, stop, end) of each segment of a file, in order.

    Args:
        spans: first byte and end of each tensor, in order, none over another.
        segment: most bytes of one.

    Returns:
        segments; `end` is where the tensor ends that a segment is a part of.
    """
    found: list[tuple[int, int, int]] = []
    joined: tuple[int, int] | None = None
    for start, end in spans:
        if joined and end - joined[0] <= segment:
            joined = (joined[0], end)
            continue
        if joined:
            found.append((*joined, joined[1]))
            joined = None
        if end - start < segment:
            joined = (start, end)
        else:
            steps = range(start, end, segment)
            found += [(first, min(first + segment, end), end) for first in steps]
    if joined:
        found.append((*joined, joined[1]))
    return found


def _apart(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order, those that overlap as one; formats other than safetensors allow them."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if found and start < found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        elif end > start:
            found.append((start, end))
    return found


class ReadAhead:
    """Segments of the files of one checkpoint, safe to use from several threads."""

    def __init__(self) -> None:
        self._segments: dict[str, list[tuple[int, int, int]]] = {}
        self._held: OrderedDict[tuple[str, int], Future[bytes]] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_CONNECTIONS, "torch2mlx-remote")

    def learn(self, remote: RemoteFile, spans: Iterable[tuple[int, int]]) -> None:
        """Take note of where the tensors of a file begin and end."""
        self._segments[remote.path] = cut(_apart(spans))

    def read_into(self, view: memoryview, remote: RemoteFile, offset: int) -> None:
        """Fill a view with the bytes of tensors of a file from `offset` on.

        Raises:
            SourceError: see `RemoteFile.fetch`.
        """
        segments = self._segments[remote.path]
        done = 0
        while done < len(view):
            index = bisect_right(segments, offset + done, key=lambda s: s[0]) - 1
            start, stop, _ = segments[index]
            data = self._segment(remote, index)
            first = offset + done - start
            count = min(stop - start - first, len(view) - done)
            view[done : done + count] = data[first : first + count]
            done += count

    def _segment(self, remote: RemoteFile, index: int) -> bytes:
        segments = self._segments[remote.path]
        with self._lock:
            wanted = self._ask(remote, index)
            for later in range(index + 1, min(index + 1 + _AHEAD, len(segments))):
                if segments[later][2] != segments[index][2]:
                    break
                self._ask(remote, later)
            self._let_go()
        try:
            return wanted.result()
        except BaseException:
            with self._lock:  # a later reader tries anew
                self._held.pop((remote.path, index), None)
            raise

    def _ask(self, remote: RemoteFile, index: int) -> Future[bytes]:
        key = (remote.path, index)
        if key not in self._held:
            start, stop, _ = self._segments[remote.path][index]
            self._held[key] = self._pool.submit(remote.fetch, start, stop)
        self._held.move_to_end(key)
        return self._held[key]

    def _let_go(self) -> None:
        """Forget what was used longest ago; what is under way arrives first."""
        for key in list(self._held)[: max(0, len(self._held) - _HELD)]:
            if self._held[key].done():
                del self._held[key]

    def close(self) -> None:
        """Give the memory and the threads back."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._held.clear()
