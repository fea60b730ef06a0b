"""GGUF headers: metadata and the table of tensors, checked against the file's size.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from torch2mlx.errors import SourceError
from torch2mlx.sources.local_files import refuse_lfs_pointer, unreadable

__all__ = ["BlockTensor", "GGUFHeader", "LongArray", "read_gguf_header"]

_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_FLOAT32, _STRING, _ARRAY = 6, 8, 9
_MAX_AXES = 8
_KEPT = 4096  # array elements; longer ones (vocabularies) are only counted
_MAX_TEXT = 64 << 20  # bytes; chat templates are the longest texts, and far below
_CHUNK = 4 << 20  # bytes read from the file at once


@dataclass(frozen=True)
class LongArray:
    """An array of the metadata that is not kept, such as a vocabulary."""

    count: int


@dataclass(frozen=True)
class BlockTensor:
    """A tensor as the file holds it.

    Attributes:
        name: in the file.
        type: number of its ggml type (`gguf.GGMLQuantizationType`).
        shape: of its values, slowest axis first.
        file, offset: where its data begin.
        row_bytes: bytes of one run along the last axis.
    """

    name: str
    type: int
    shape: tuple[int, ...]
    file: Path
    offset: int
    row_bytes: int

    @property
    def span(self) -> tuple[int, int]:
        """Where its data begin and end in the file."""
        return self.offset, self.offset + prod(self.shape[:-1]) * self.row_bytes


@dataclass(frozen=True)
class GGUFHeader:
    """Metadata by key (float32 values in their shortest form), and tensors by name."""

    metadata: dict[str, Any]
    tensors: dict[str, BlockTensor]


class _TruncatedError(Exception):
    """The file ended inside of the header."""


class _Cursor:
    """Reads little-endian values one after the other."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._buffer = b""
        self._at = 0
        self._base = 0

    @property
    def position(self) -> int:
        """Offset in the file of the next value."""
        return self._base + self._at

    def _need(self, count: int) -> int:
        """Make `count` bytes available; returns where they begin in the buffer."""
        if self._at + count > len(self._buffer):
            rest = self._buffer[self._at :]
            more = self._file.read(max(_CHUNK, count - len(rest)))
            self._base, self._at, self._buffer = self._base + self._at, 0, rest + more
            if len(self._buffer) < count:
                raise _TruncatedError
        start = self._at
        self._at += count
        return start

    def number(self, code: str) -> Any:
        start = self._need(struct.calcsize(code))
        return struct.unpack_from(code, self._buffer, start)[0]

    def text(self) -> str:
        count = self._length()
        start = self._need(count)
        return self._buffer[start : start + count].decode("utf-8", errors="replace")

    def skip_text(self) -> None:
        self._need(self._length())

    def _length(self) -> int:
        count: int = self.number("<Q")
        if count > _MAX_TEXT:
            raise _TruncatedError
        return count

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise ValueError(f"unknown metadata type {kind}")
        value = self.number(_SCALARS[kind])
        return _shortest(value) if kind == _FLOAT32 else value

    def _array(self) -> Any:
        kind, count = self.number("<I"), self.number("<Q")
        if count <= _KEPT:
            return [self.value(kind) for _ in range(count)]
        if kind == _STRING:
            for _ in range(count):
                self.skip_text()
        elif kind in _SCALARS:
            self.skip(count * struct.calcsize(_SCALARS[kind]))
        else:
            raise ValueError(f"an array of {count:,} elements of type {kind}")
        return LongArray(count)

    def skip(self, count: int) -> None:
        while count:
            step = min(count, _CHUNK)
            self._need(step)
            count -= step


def _shortest(value: float) -> float:
    """The shortest decimal that rounds to a float32: 1e-05, not 9.999999747378752e-06."""
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return value


def read_gguf_header(path: Path, block_sizes: dict[int, tuple[int, int]]) -> GGUFHeader:
    """Metadata and tensors of one GGUF file.

    Args:
        path: the file.
        block_sizes: (elements, bytes) of one block of each ggml type.

    Raises:
        SourceError: not GGUF, a version that is not read, damaged or truncated.
    """
    refuse_lfs_pointer(path)
    try:
        with path.open("rb") as file:
            return _parse(path, file, block_sizes)
    except OSError as error:
        raise unreadable(path, error) from error
    except _TruncatedError:
        raise SourceError(
            f"{path}: truncated or damaged: its header does not end within the file; download it "
            "again"
        ) from None
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not a readable GGUF file: {error}") from None


def _parse(path: Path, file: BinaryIO, block_sizes: dict[int, tuple[int, int]]) -> GGUFHeader:
    size = path.stat().st_size
    cursor = _Cursor(file)
    if size < 24 or cursor.number("<I") != int.from_bytes(b"GGUF", "little"):
        raise SourceError(f"{path}: not a GGUF file (it does not begin with 'GGUF')")
    version = cursor.number("<I")
    if version not in (2, 3):
        order = " in big-endian byte order" if version >= 1 << 24 else ""
        raise SourceError(f"{path}: GGUF version {version}{order}; expected 2 or 3, little-endian")
    tensor_count, key_count = cursor.number("<Q"), cursor.number("<Q")
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.number("<I"))
    rows = []
    for _ in range(tensor_count):
        name = cursor.text()
        axes = cursor.number("<I")
        if not 1 <= axes <= _MAX_AXES:
            raise ValueError(f"tensor {name!r} has {axes} axes")
        dims = [cursor.number("<Q") for _ in range(axes)]
        rows.append((name, tuple(reversed(dims)), cursor.number("<I"), cursor.number("<Q")))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0:
        raise ValueError(f"general.alignment is {alignment!r}")
    base = -(-cursor.position // alignment) * alignment
    tensors: dict[str, BlockTensor] = {}
    for name, shape, kind, offset in rows:
        if kind not in block_sizes:
            raise ValueError(f"tensor {name!r} has ggml type {kind}, which is not known")
        elements, width = block_sizes[kind]
        last = shape[-1] if shape else 1
        if last % elements:
            raise ValueError(f"tensor {name!r}: rows of {last} are no multiple of {elements}")
        if name in tensors:
            raise ValueError(f"tensor {name!r} occurs twice")
        row_bytes = last // elements * width
        end = base + offset + prod(shape[:-1]) * row_bytes
        if end > size:
            raise SourceError(
                f"{path}: truncated: tensor {name!r} should end at byte {end:,}, but the file has "
                f"{size:,} bytes; download it again"
            )
        tensors[name] = BlockTensor(name, kind, shape, path, base + offset, row_bytes)
    return GGUFHeader(metadata, tensors)
