"""safetensors files: the header is checked in full before any tensor is trusted.

Format: 8 bytes little-endian header length, a JSON header, then tensor data; `data_offsets`
are relative to the end of the header, must not overlap and must leave no gap
(https://huggingface.co/docs/safetensors/index#format).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from torch2mlx.dtypes import DTYPES
from torch2mlx.errors import SourceError
from torch2mlx.sources.base import TensorInfo, TensorSource

__all__ = ["SafetensorsSource", "read_header"]

_MAX_HEADER = 100_000_000  # bytes; the limit of the reference implementation
_LFS = b"version https://git-lfs"


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Header of a safetensors file and the offset at which its data begins.

    Raises:
        SourceError: the file is missing, truncated, a Git LFS pointer, or its header does not
            describe its bytes exactly.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            if start + b" " and _LFS.startswith(start) and len(start) == 8:
                raise SourceError(
                    f"{path}: this is a Git LFS pointer, not the weights; run `git lfs pull` "
                    "in the checkpoint's folder or download the file again"
                )
            length = int.from_bytes(start, "little")
            size = os.fstat(file.fileno()).st_size
            if len(start) < 8 or length > size - 8:
                raise SourceError(
                    f"{path}: truncated: its header should end at byte {8 + length:,}, but the "
                    f"file has {size:,} bytes; download it again"
                )
            if length > _MAX_HEADER:
                raise SourceError(f"{path}: header of {length:,} bytes; at most 100 MB is allowed")
            text = file.read(length)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        header = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not a safetensors file: {error}") from None
    if not isinstance(header, dict):
        raise SourceError(f"{path}: not a safetensors file: its header is no JSON object")
    return header, 8 + length


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {twice!r} occurs twice")
    return result


def _entries(path: Path) -> dict[str, tuple[TensorInfo, int]]:
    """(info, absolute offset) of each tensor of a file, checked against the file's size."""
    header, base = read_header(path)
    size = path.stat().st_size
    found: dict[str, tuple[TensorInfo, int]] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype = DTYPES[entry["dtype"]]
            shape = tuple(entry["shape"])
            begin, end = entry["data_offsets"]
            ok = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
        except (KeyError, TypeError, ValueError):
            ok = False
        if not ok:
            raise SourceError(
                f"{path}: tensor {name!r}: malformed entry {str(entry)[:120]}; expected dtype "
                f"(one of {', '.join(DTYPES)}), shape and data_offsets"
            )
        info = TensorInfo(name, dtype, shape, path)
        if end - begin != prod(shape) * dtype.itemsize:
            raise SourceError(
                f"{path}: tensor {name!r}: {list(shape)} of {dtype} needs {info.nbytes:,} bytes, "
                f"its offsets span {end - begin:,}"
            )
        if base + end > size:
            raise SourceError(
                f"{path}: truncated: tensor {name!r} should end at byte {base + end:,}, but the "
                f"file has {size:,} bytes; download it again"
            )
        found[name] = (info, base + begin)
        spans.append((begin, end, name))
    spans.sort()
    position = 0
    for begin, end, name in spans:
        if begin != position:
            what = "overlaps another tensor" if begin < position else "leaves a gap before it"
            raise SourceError(f"{path}: tensor {name!r} {what} (byte {begin:,}, expected {position:,})")
        position = end
    if base + position != size:
        raise SourceError(
            f"{path}: {size - base - position:,} bytes after the last tensor belong to none"
        )
    return found


class SafetensorsSource(TensorSource):
    """Tensors of one or several safetensors files.

    Args:
        files: the shards.
        weight_map: file name of each tensor, as an index gives it; checked against the headers.

    Raises:
        SourceError: a damaged file, a tensor in two files, or an index that does not match.
    """

    def __init__(self, files: Sequence[Path], weight_map: Mapping[str, str] | None = None) -> None:
        self._files = tuple(sorted(files))
        self._handles: dict[Path, int] = {}
        self._entries: dict[str, tuple[TensorInfo, int]] = {}
        for path in self._files:
            for name, entry in _entries(path).items():
                if name in self._entries:
                    raise SourceError(
                        f"tensor {name!r} is in {self._entries[name][0].file.name} and in "
                        f"{path.name}; keep only one set of weights in the folder"
                    )
                self._entries[name] = entry
        for name, file in (weight_map or {}).items():
            if name not in self._entries or self._entries[name][0].file.name != Path(file).name:
                raise SourceError(
                    f"the index says that {name!r} is in {file}, but it is not there; "
                    "download the checkpoint again"
                )
        self._infos = {name: info for name, (info, _) in self._entries.items()}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._infos

    @property
    def files(self) -> tuple[Path, ...]:
        return self._files

    def _handle(self, path: Path) -> int:
        if path not in self._handles:
            try:
                self._handles[path] = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            except OSError as error:
                raise SourceError(f"{path}: cannot be read: {error.strerror}") from error
        return self._handles[path]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray[Any, Any]:
        info, offset = self._entries[name]
        shape = info.shape
        if shape:
            stop = shape[0] if stop is None else stop
            offset += start * prod(shape[1:]) * info.dtype.itemsize
            shape = (stop - start, *shape[1:])
        block = np.empty(shape, info.dtype.numpy)
        view = memoryview(block.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        handle = self._handle(info.file)
        done = 0
        while done < len(view):
            try:
                count = os.preadv(handle, [view[done:]], offset + done)
            except OSError as error:
                raise SourceError(f"{info.file}: tensor {name!r}: {error.strerror}") from error
            if not count:
                raise SourceError(
                    f"{info.file}: ended inside tensor {name!r}; did the file change meanwhile?"
                )
            done += count
        return block

    def close(self) -> None:
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()
