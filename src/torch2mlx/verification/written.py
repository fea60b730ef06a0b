"""The weight files of an MLX folder, read and hashed at the same time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from torch2mlx.errors import SourceError
from torch2mlx.sources.base import TensorInfo
from torch2mlx.sources.safetensors import SafetensorsSource, read_header

__all__ = ["WrittenFiles"]

Array = np.ndarray[Any, Any]


class WrittenFiles:
    """Tensors of safetensors files; every byte goes through SHA-256 once, in file order.

    Reads at the position that a file's hash has reached feed it, on another thread; other reads
    (scales beside their weight) do not, so their bytes are read once more by `advance`.

    Args:
        files: the weight files.
        block_bytes: size of the reads of `advance`.
        progress: called with the number of bytes hashed since its last call; the calls add up
            to the size of the files.

    Raises:
        SourceError: a damaged file, or a tensor in two files.
    """

    def __init__(
        self, files: Sequence[Path], block_bytes: int, progress: Callable[[int], None]
    ) -> None:
        self._source = SafetensorsSource(files)
        self._block = block_bytes
        self._progress = progress
        self._offsets: dict[str, int] = {}
        self._files = {path: _HashedFile(path) for path in self._source.files}
        self._worker = ThreadPoolExecutor(max_workers=1)
        self._pending: Future[None] | None = None
        for path in self._source.files:
            header, base = read_header(path)
            for name, entry in header.items():
                if name != "__metadata__":
                    self._offsets[name] = base + entry["data_offsets"][0]

    def __enter__(self) -> WrittenFiles:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._worker.shutdown(wait=True, cancel_futures=True)
        for file in self._files.values():
            os.close(file.handle)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name."""
        return self._source.tensors

    def place(self, name: str) -> tuple[Path, int]:
        """File and byte offset of a tensor, which order reading."""
        return self._source.tensors[name].file, self._offsets[name]

    def rows(self, name: str, start: int, count: int) -> Array:
        """Rows of the last axis, counted over all axes before it: bit view `[count, width]`."""
        info = self._source.tensors[name]
        width = info.shape[-1] if info.shape else 1
        row_bytes = width * info.dtype.itemsize
        file = self._files[info.file]
        data = file.read(self._offsets[name] + start * row_bytes, count * row_bytes, name)
        self._feed(file, self._offsets[name] + start * row_bytes, data)
        return data.view(info.dtype.numpy).reshape(count, width)

    def advance(self, name: str) -> None:
        """Hash the file of a tensor up to where the tensor begins."""
        self._advance(self._files[self._source.tensors[name].file], self._offsets[name])

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each file by its name; reads what has not been read."""
        for file in self._files.values():
            self._advance(file, file.size)
        self._settle()
        return {path.name: file.digest.hexdigest() for path, file in self._files.items()}

    def _advance(self, file: _HashedFile, offset: int) -> None:
        while file.position < offset:
            count = min(self._block, offset - file.position)
            self._feed(file, file.position, file.read(file.position, count, ""))

    def _feed(self, file: _HashedFile, offset: int, data: Array) -> None:
        if offset != file.position or not data.size:
            return
        self._settle()
        file.position += data.size
        self._pending = self._worker.submit(file.digest.update, data.data)
        self._progress(data.size)

    def _settle(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None


class _HashedFile:
    """An open file and how far it has been hashed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self.size = os.fstat(self.handle).st_size
        self.position = 0
        self.digest = hashlib.sha256()

    def read(self, offset: int, count: int, name: str) -> Array:
        data = np.empty(count, np.uint8)
        view = memoryview(data)  # type: ignore[arg-type]
        done = 0
        while done < count:
            got = os.preadv(self.handle, [view[done:]], offset + done)
            if not got:
                raise SourceError(f"{self.path}: ended inside tensor {name!r} while it was read")
            done += got
        return data
