"""torch files (.bin, .pt, .pth): the zip format of torch.save, read in place.

The archive holds data.pkl, which describes tensors as strided views, and one uncompressed record
a storage (https://docs.pytorch.org/docs/stable/notes/serialization.html).
The pickle is interpreted by `torch_pickle`, never executed; storages are read by position.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from torch2mlx.errors import SourceError, Torch2MLXError
from torch2mlx.sources.base import TensorInfo, TensorSource
from torch2mlx.sources.local_files import PositionalFiles, refuse_lfs_pointer, unreadable
from torch2mlx.sources.safetensors import check_weight_map
from torch2mlx.sources.torch_pickle import StoredTensor, read_pickle

__all__ = ["TorchZipSource", "read_object", "unwrap_state_dict"]

# Where training scripts keep the weights inside of what they save, most specific first.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights")
# What DistributedDataParallel and torch.compile put before every name.
_PREFIXES = ("module.", "_orig_mod.")
_BUFFER = 8 << 20  # bytes of a storage held at once while a strided tensor is gathered
_MAX_PICKLE = 1 << 28  # bytes
_MAX_DIRECTORY = 32 << 20  # bytes of a zip's table of records: some 300,000 storages
_MAX_TAIL = (1 << 16) + 22  # bytes in which a zip's last record begins
_MAX_DEPTH = 8  # of nesting; a pickle can hold itself
_LOCAL_HEADER = 30  # bytes of a zip record's header before its name

Unwrap = Callable[[Path, Any], tuple[dict[str, StoredTensor], list[str]]]


class TorchZipSource(TensorSource):
    """Tensors of one or several torch files.

    Args:
        files: the shards.
        weight_map: file name of each tensor, as an index gives it; checked.
        unwrap: tensors by name, and notes, of what a file holds; `unwrap_state_dict` unless given.

    Attributes:
        notes: what was unwrapped and what was left out.

    Raises:
        SourceError: a damaged, legacy or TorchScript file, a pickle that is more than tensors, a
            tensor in two files, or an index that does not match.
    """

    def __init__(
        self,
        files: Sequence[Path],
        weight_map: Mapping[str, str] | None = None,
        unwrap: Unwrap | None = None,
    ) -> None:
        self._files = tuple(sorted(files))
        self._reads = PositionalFiles(self._files)
        self._entries: dict[str, tuple[TensorInfo, StoredTensor, int]] = {}
        notes: list[str] = []
        for path in self._files:
            entries, spans, file_notes = _entries(path, unwrap or unwrap_state_dict)
            self._reads.learn(path, spans)
            notes += file_notes
            for name, entry in entries.items():
                if name in self._entries:
                    raise SourceError(
                        f"tensor {name!r} is in {self._entries[name][0].file} and in {path.name}; "
                        "keep only one set of weights in the folder"
                    )
                self._entries[name] = entry
        self.notes = tuple(dict.fromkeys(notes))
        self._infos = {name: entry[0] for name, entry in self._entries.items()}
        check_weight_map(self._infos, weight_map or {})

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._infos

    @property
    def files(self) -> tuple[Path, ...]:
        return self._files

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray[Any, Any]:
        info, stored, base = self._entries[name]
        shape, origin = info.shape, stored.offset
        if shape:
            stop = shape[0] if stop is None else stop
            shape = (stop - start, *shape[1:])
            origin += start * stored.stride[0]
        block = np.empty(shape, info.dtype.numpy)
        if block.size:
            self._gather(block, stored.stride, origin, info, base)
        return block

    def read_flat(self, name: str, start: int, stop: int) -> np.ndarray[Any, Any]:
        info, stored, base = self._entries[name]
        if not _is_contiguous(stored.shape, stored.stride):
            return super().read_flat(name, start, stop)
        block = np.empty(stop - start, info.dtype.numpy)
        offset = base + (stored.offset + start) * info.dtype.itemsize
        self._reads.fill(block, info.file, offset, name)
        return block

    def _gather(
        self,
        block: np.ndarray[Any, Any],
        strides: tuple[int, ...],
        origin: int,
        info: TensorInfo,
        base: int,
    ) -> None:
        """Fill `block` with the strided elements that begin at element `origin` of a storage.

        A block whose elements lie apart is cut along the axis with the longest steps until the
        stretch of file that holds a piece fits the buffer, or is worth a read of its own.
        """
        itemsize = info.dtype.itemsize
        shape = block.shape
        span = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if _is_contiguous(shape, strides) and block.flags.c_contiguous:
            self._reads.fill(block, info.file, base + origin * itemsize, info.name)
            return
        if span * itemsize <= _BUFFER:
            stretch = np.empty(span, block.dtype)
            self._reads.fill(stretch, info.file, base + origin * itemsize, info.name)
            steps = tuple(s * itemsize for s in strides)
            block[...] = np.lib.stride_tricks.as_strided(stretch, shape, steps, writeable=False)
            return
        axis = max((i for i in range(len(shape)) if shape[i] > 1), key=lambda i: strides[i])
        inner = span - (shape[axis] - 1) * strides[axis]
        fitting = max(1, (_BUFFER // itemsize - inner) // strides[axis] + 1)
        if inner * itemsize >= _BUFFER // 64 and inner * 4 <= strides[axis]:
            fitting = 1  # long runs far apart: what lies between them stays unread
        for first in range(0, shape[axis], fitting):
            part = (slice(None),) * axis + (slice(first, first + fitting),)
            self._gather(block[part], strides, origin + first * strides[axis], info, base)

    def close(self) -> None:
        self._reads.close()


def _is_contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    return all(
        n == 1 or stride == prod(shape[axis + 1 :])
        for axis, (n, stride) in enumerate(zip(shape, strides, strict=True))
    )


def unwrap_state_dict(path: Path, value: Any) -> tuple[dict[str, StoredTensor], list[str]]:
    """The state dict inside of what a file holds, and notes on what was left out.

    Raises:
        SourceError: there is none, or several could be meant.
    """
    trail: list[str] = []
    notes: list[str] = []
    while isinstance(value, Mapping) and len(trail) < _MAX_DEPTH:
        inner = {k: v for k, v in value.items() if isinstance(v, Mapping) and _holds_tensors(v)}
        key = next((k for k in _WRAPPERS if k in inner), None)
        if key is None:
            if _direct(value) or not inner:
                break
            if len(inner) > 1:
                raise SourceError(
                    f"{path}: several groups of tensors: {', '.join(map(repr, inner))}; save the "
                    "one that is the model: torch.save(checkpoint[...], path)"
                )
            key = next(iter(inner))
        others = [str(k) for k in value if k != key]
        if others:
            notes.append(f"{path.name}: left out {', '.join(others[:12])} beside {key!r}")
        trail.append(str(key))
        value = value[key]
    tensors = _direct(value) if isinstance(value, Mapping) else {}
    if not tensors:
        found = "no tensors" if isinstance(value, Mapping) else f"a {type(value).__name__}"
        raise SourceError(
            f"{path}: expected a state dict (names and tensors), found {found}; save one with "
            "torch.save(model.state_dict(), path)"
        )
    if trail:
        notes.insert(0, f"{path.name}: the state dict is under {' / '.join(map(repr, trail))}")
    rest = [str(k) for k in value if k not in tensors]
    if rest:
        notes.append(f"{path.name}: left out {', '.join(rest[:12])}: not tensors")
    while tensors and (
        prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None)
    ):
        tensors = {name.removeprefix(prefix): t for name, t in tensors.items()}
        notes.append(f"{path.name}: the prefix {prefix!r} was taken off every name")
    return tensors, notes


def _direct(value: Mapping[Any, Any]) -> dict[str, StoredTensor]:
    return {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, StoredTensor)}


def _holds_tensors(value: Mapping[Any, Any], depth: int = 0) -> bool:
    return depth < _MAX_DEPTH and any(
        isinstance(v, StoredTensor) or (isinstance(v, Mapping) and _holds_tensors(v, depth + 1))
        for v in value.values()
    )


def read_object(path: Path) -> Any:
    """What the pickle of a torch file describes: plain containers and values, `StoredTensor`s.

    Raises:
        SourceError: as for `TorchZipSource`.
    """
    with _opened(path) as (archive, records, root):
        return read_pickle(path, archive.read(records[f"{root}/data.pkl"]))


@contextmanager
def _opened(
    path: Path,
) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo], str]]:
    """The archive of torch.save, its records by name, and its top folder."""
    refuse_lfs_pointer(path)
    _refuse_large_directory(path)
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            records = _records(path, archive)
            root = _root(path, records)
            _refuse_byte_order(path, archive, records.get(f"{root}/byteorder"))
            yield archive, records, root
    except OSError as error:
        raise unreadable(path, error) from error
    except Torch2MLXError:
        raise
    except Exception as error:  # zipfile raises a dozen kinds for damaged archives
        raise _not_a_zip(path, error) from None


def _entries(
    path: Path, unwrap: Unwrap
) -> tuple[dict[str, tuple[TensorInfo, StoredTensor, int]], list[tuple[int, int]], list[str]]:
    """(info, view, file offset of its storage) of each tensor of a file, bounds checked.

    Also where each storage begins and ends, and notes.
    """
    with _opened(path) as (archive, records, root), path.open("rb") as file:
        tensors, notes = unwrap(path, read_pickle(path, archive.read(records[f"{root}/data.pkl"])))
        spans: dict[str, tuple[int, int]] = {}
        found: dict[str, tuple[TensorInfo, StoredTensor, int]] = {}
        for name, tensor in tensors.items():
            record = records.get(f"{root}/data/{tensor.key}")
            info = TensorInfo(name, tensor.dtype, tensor.shape, path)
            _check_bounds(info, tensor, record)
            assert record is not None
            if tensor.key not in spans:
                file.seek(record.header_offset)
                header = file.read(_LOCAL_HEADER)
                name_length, extra_length = header[26:28], header[28:30]
                start = (
                    record.header_offset
                    + _LOCAL_HEADER
                    + int.from_bytes(name_length, "little")
                    + int.from_bytes(extra_length, "little")
                )
                spans[tensor.key] = (start, start + record.file_size)
            found[name] = (info, tensor, spans[tensor.key][0])
    return found, list(spans.values()), notes


def _records(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The archive's records by name; no name twice, all within the file."""
    records = {info.filename: info for info in archive.infolist()}
    if len(records) != len(archive.infolist()):
        raise SourceError(f"{path}: the archive has two records of one name; it is damaged")
    if any(not 0 <= info.header_offset < path.stat().st_size for info in records.values()):
        raise SourceError(f"{path}: damaged: its records lie outside of it; download it again")
    for info in records.values():
        if info.CRC == 0:  # torch.serialization.set_crc32_options(False): none was computed
            info.CRC = None  # type: ignore[assignment]  # which zipfile does not compare
    return records


def _refuse_large_directory(path: Path) -> None:
    """Refuse a table of records that would take more memory than any model needs.

    `zipfile` reads the whole table at once.  Its size stands in the last record of the file and,
    for large archives, in one before it
    (https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.14 and 4.3.16).
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _MAX_TAIL))
            tail = file.read(_MAX_TAIL)
    except OSError as error:
        raise unreadable(path, error) from error
    end, end64 = tail.rfind(b"PK\x05\x06"), tail.rfind(b"PK\x06\x06")
    sizes = [int.from_bytes(tail[end + 12 : end + 16], "little")] if end >= 0 else []
    if sizes == [0xFFFFFFFF]:
        sizes = []
    if end64 >= 0:
        sizes.append(int.from_bytes(tail[end64 + 40 : end64 + 48], "little"))
    if any(directory > _MAX_DIRECTORY for directory in sizes):
        raise SourceError(
            f"{path}: its table of records takes {max(sizes):,} bytes, expected at most "
            f"{_MAX_DIRECTORY:,}; this is no file of torch.save"
        )


def _root(path: Path, records: Mapping[str, zipfile.ZipInfo]) -> str:
    """The archive's top folder; an error for archives of other kinds."""
    roots = [name.removesuffix("/data.pkl") for name in records if name.endswith("/data.pkl")]
    roots = [root for root in roots if "/" not in root]
    top = next(iter(records), "").split("/")[0]
    if f"{top}/archive_format" in records:
        raise SourceError(f"{path}: an exported program (torch.export), not a state dict")
    if len(roots) != 1:
        raise SourceError(
            f"{path}: a zip file, but not one of torch.save (no data.pkl in it); expected a state "
            "dict saved by torch.save"
        )
    if f"{roots[0]}/constants.pkl" in records:
        raise SourceError(
            f"{path}: a TorchScript archive, not a state dict; save its weights first: "
            f"torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pt')"
        )
    if any(info.compress_type != zipfile.ZIP_STORED for info in records.values()):
        raise SourceError(
            f"{path}: the archive is compressed, which torch.save never does; save it again with "
            "torch.save"
        )
    if records[f"{roots[0]}/data.pkl"].file_size > _MAX_PICKLE:
        raise SourceError(f"{path}: its pickle is larger than {_MAX_PICKLE:,} bytes")
    return roots[0]


def _refuse_byte_order(
    path: Path, archive: zipfile.ZipFile, record: zipfile.ZipInfo | None
) -> None:
    if record is not None and (record.file_size > 16 or archive.read(record) != b"little"):
        raise SourceError(
            f"{path}: written in big-endian byte order; save it again on a little-endian machine"
        )


def _check_bounds(info: TensorInfo, tensor: StoredTensor, record: zipfile.ZipInfo | None) -> None:
    if record is None:
        raise SourceError(
            f"{info.file}: tensor {info.name!r}: its data are missing; the file is damaged"
        )
    last = tensor.offset + sum(
        (n - 1) * s for n, s in zip(tensor.shape, tensor.stride, strict=True)
    )
    if info.size and (last + 1) * info.dtype.itemsize > record.file_size:
        raise SourceError(
            f"{info.file}: tensor {info.name!r} reaches beyond its storage of "
            f"{record.file_size:,} bytes; the file is damaged"
        )


def _not_a_zip(path: Path, error: Exception) -> SourceError:
    with path.open("rb") as file:
        start = file.read(2)
    if start == b"PK":
        return SourceError(f"{path}: truncated or damaged: {error}; download it again")
    if start[:1] == b"\x80":
        return SourceError(
            f"{path}: a torch file of the format before torch 1.6; save it again: "
            f"torch.save(torch.load({path.name!r}, map_location='cpu', weights_only=True), "
            "'weights.pt')"
        )
    return SourceError(
        f"{path}: not a torch file: expected a zip archive of torch.save, found bytes {start!r}"
    )
