"""safetensors files: the header is checked in full before any tensor is trusted.

Format: 8 bytes little-endian header length, a JSON header, then tensor data; `data_offsets`
are relative to the end of the header, must not overlap and must leave no gap
(https://huggingface.co/docs/safetensors/index#format).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from torch2mlx.dtypes import DTYPES
from torch2mlx.errors import SourceError
from torch2mlx.sources.base import TensorInfo, TensorSource
from torch2mlx.sources.local_files import PositionalFiles, refuse_lfs_pointer, unreadable

__all__ = ["SafetensorsSource", "read_header"]

_MAX_HEADER = 100_000_000  # bytes; the limit of the reference implementation
_MAX_VALUES = 10_000_000  # JSON values in it: each takes some 60 bytes of memory
_MAX_AXES = 64
_NAMED = 5  # names a message lists before it counts the rest


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Header of a safetensors file and the offset at which its data begins.

    Raises:
        SourceError: the file is missing, truncated, a Git LFS pointer, or does not start with
            a JSON header.
    """
    refuse_lfs_pointer(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            text = file.read(min(length, _MAX_HEADER)) if length <= size - 8 else b""
    except OSError as error:
        raise unreadable(path, error) from error
    if size < 8:
        raise SourceError(f"{path}: truncated: the file has {size} bytes; download it again")
    if length > size - 8:
        raise SourceError(
            f"{path}: truncated, or not a safetensors file: its header should end at byte "
            f"{8 + length:,}, but the file has {size:,} bytes; download it again"
        )
    if length > _MAX_HEADER:
        raise SourceError(
            f"{path}: header of {length:,} bytes; at most {_MAX_HEADER:,} are allowed"
        )
    if sum(map(text.count, (b",", b"[", b"{"))) > _MAX_VALUES:
        raise SourceError(
            f"{path}: header of more than {_MAX_VALUES:,} values; no model has so many"
        )
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
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} occurs twice")
    return result


def _entry(path: Path, name: str, entry: Any) -> tuple[TensorInfo, int, int]:
    """(info, begin, end) of one header entry, its fields checked against each other."""
    try:
        dtype_name, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        numbers = (*shape, begin, end)  # of a hundred thousand tensors: no loop in Python
        ok = {*map(type, numbers)} == {int} and min(numbers) >= 0 and max(numbers) < 1 << 62
        ok = ok and isinstance(dtype_name, str) and dtype_name.isidentifier()
        ok = ok and len(shape) <= _MAX_AXES
    except (KeyError, TypeError, ValueError):
        ok = False
    if not ok:
        raise SourceError(
            f"{path}: tensor {name!r}: malformed entry {str(entry)[:120]}; expected dtype, shape "
            "and data_offsets"
        )
    if dtype_name not in DTYPES:
        raise SourceError(
            f"{path}: tensor {name!r} has dtype {dtype_name}, which is not supported; expected "
            f"one of {', '.join(DTYPES)}"
        )
    info = TensorInfo(name, DTYPES[dtype_name], shape, path)
    if end - begin != info.nbytes:
        raise SourceError(
            f"{path}: tensor {name!r}: {list(shape)} of {info.dtype} needs {info.nbytes:,} bytes, "
            f"its offsets span {end - begin:,}"
        )
    return info, begin, end


def _entries(path: Path) -> dict[str, tuple[TensorInfo, int]]:
    """(info, absolute offset) of each tensor of a file, checked against the file's size."""
    header, base = read_header(path)
    size = path.stat().st_size
    found: dict[str, tuple[TensorInfo, int]] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        info, begin, end = _entry(path, name, entry)
        if base + end > size:
            raise SourceError(
                f"{path}: truncated: tensor {name!r} should end at byte {base + end:,}, but the "
                f"file has {size:,} bytes; download it again"
            )
        found[name] = (info, base + begin)
        spans.append((begin, end, name))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            what = "overlaps another tensor" if begin < position else "leaves a gap before it"
            raise SourceError(
                f"{path}: tensor {name!r} {what} (it begins at data byte {begin:,}, expected "
                f"{position:,}); the file is damaged"
            )
        position = end
    if base + position != size:
        raise SourceError(
            f"{path}: {size - base - position:,} bytes after the last tensor belong to none; "
            "the file is damaged"
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
        self._reads = PositionalFiles(self._files)
        self._entries: dict[str, tuple[TensorInfo, int]] = {}
        for path in self._files:
            entries = _entries(path)
            self._reads.learn(path, ((at, at + info.nbytes) for info, at in entries.values()))
            for name, entry in entries.items():
                if name in self._entries:
                    raise SourceError(
                        f"tensor {name!r} is in {self._entries[name][0].file} and in {path.name}; "
                        "keep only one set of weights in the folder"
                    )
                self._entries[name] = entry
        self._infos = {name: info for name, (info, _) in self._entries.items()}
        check_weight_map(self._infos, weight_map or {})

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._infos

    @property
    def files(self) -> tuple[Path, ...]:
        return self._files

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray[Any, Any]:
        info, offset = self._entries[name]
        shape = info.shape
        if shape:
            stop = shape[0] if stop is None else stop
            offset += start * prod(shape[1:]) * info.dtype.itemsize
            shape = (stop - start, *shape[1:])
        block = np.empty(shape, info.dtype.numpy)
        self._reads.fill(block, info.file, offset, name)
        return block

    def read_flat(self, name: str, start: int, stop: int) -> np.ndarray[Any, Any]:
        info, offset = self._entries[name]
        block = np.empty(stop - start, info.dtype.numpy)
        self._reads.fill(block, info.file, offset + start * info.dtype.itemsize, name)
        return block

    def close(self) -> None:
        self._reads.close()


def check_weight_map(infos: Mapping[str, TensorInfo], weight_map: Mapping[str, str]) -> None:
    """Raise SourceError unless every tensor of an index is in the file the index names."""
    last = {file: Path(file).name for file in set(weight_map.values())}
    wrong = [
        f"{name!r} in {file}"
        for name, file in weight_map.items()
        if name not in infos or infos[name].file.name != last[file]
    ]
    if wrong:
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise SourceError(
            f"the index places {', '.join(wrong[:_NAMED])}{more}, but the files do not hold them "
            "there; download the checkpoint again"
        )
