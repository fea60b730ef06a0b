"""GGUF tensors, dequantized by row blocks, and their 4- and 8-bit grids in MLX's layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from torch2mlx.dtypes import DTYPES
from torch2mlx.errors import NumericError, SourceError, UnsupportedError
from torch2mlx.planning.expressions import Source
from torch2mlx.sources.base import Packed, TensorInfo, TensorSource
from torch2mlx.sources.gguf.header import BlockTensor, read_gguf_header
from torch2mlx.sources.local_files import PositionalFiles

__all__ = ["GGUFSource"]

# ggml types whose elements are stored as they are.
_PLAIN = {"F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"}
# ggml types whose grid is scale * code + bias over 32 elements: bits of the code.
_AFFINE = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}
_GROUP = 32
_DECODED = 4 << 20  # elements decoded at once; decoders use several arrays of this size


class GGUFSource(TensorSource):
    """Tensors of one GGUF file or of all parts of a split one.

    Values are F32, or the stored type where it is a plain one (F16, BF16 ...).  Tensors of
    `packed_names` can also be read as the three arrays of MLX's affine format, under the names
    "<name>#codes" (U32), "<name>#scales" and "<name>#biases" (F16); these are not in `tensors`.

    Raises:
        SourceError: a damaged file, or a tensor in two files.
        UnsupportedError: a block type that the gguf package cannot decode.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        import gguf

        sizes = {int(kind): size for kind, size in gguf.GGML_QUANT_SIZES.items()}
        self._types = {int(kind): kind.name for kind in gguf.GGMLQuantizationType}
        self._files = tuple(sorted(files))
        self._reads = PositionalFiles(self._files)
        self._stored: dict[str, BlockTensor] = {}
        self.metadata: dict[str, Any] = {}
        for path in self._files:
            header = read_gguf_header(path, sizes)
            self._reads.learn(path, (tensor.span for tensor in header.tensors.values()))
            self.metadata = header.metadata | self.metadata
            for name, tensor in header.tensors.items():
                if name in self._stored:
                    raise SourceError(
                        f"tensor {name!r} is in {self._stored[name].file} and in {path.name}; "
                        "the parts belong to different models"
                    )
                self._stored[name] = tensor
        self._infos = {name: self._info(tensor) for name, tensor in self._stored.items()}
        self._refuse_unknown_types()

    def _type(self, tensor: BlockTensor) -> str:
        return self._types[tensor.type]

    def _info(self, tensor: BlockTensor) -> TensorInfo:
        kind = self._type(tensor)
        dtype = DTYPES[kind if kind in _PLAIN else "F32"]
        return TensorInfo(tensor.name, dtype, tensor.shape, tensor.file)

    def _refuse_unknown_types(self) -> None:
        import gguf

        by_type: dict[int, BlockTensor] = {}
        for tensor in self._stored.values():
            if self._type(tensor) not in _PLAIN:
                by_type.setdefault(tensor.type, tensor)
        for number, tensor in by_type.items():
            kind = gguf.GGMLQuantizationType(number)
            block = np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
            try:
                gguf.dequantize(block, kind)
            except NotImplementedError:
                raise UnsupportedError(
                    f"{tensor.file}: tensor {tensor.name!r} is stored as {kind.name}, which the "
                    "gguf package cannot decode; use another quantization of the model"
                ) from None

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._infos

    @property
    def files(self) -> tuple[Path, ...]:
        return self._files

    @property
    def header_bytes(self) -> int:
        """Bytes of the first file before its first tensor."""
        first = self._files[0]
        return min((t.offset for t in self._stored.values() if t.file == first), default=0)

    def stored_type(self, name: str) -> str:
        """The ggml type of a tensor ("Q4_K")."""
        return self._type(self._stored[name])

    def packed(self, name: str) -> Packed | None:
        """The grid of a tensor in MLX's affine layout, None where it has no such grid."""
        tensor = self._stored[name]
        bits = _AFFINE.get(self._type(tensor))
        if bits is None or len(tensor.shape) < 2:
            return None
        *rows, columns = tensor.shape
        groups = (*rows, columns // _GROUP)
        return Packed(
            bits,
            _GROUP,
            Source(f"{name}#codes", DTYPES["U32"], (*rows, columns * bits // 32)),
            Source(f"{name}#scales", DTYPES["F16"], groups),
            Source(f"{name}#biases", DTYPES["F16"], groups),
        )

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray[Any, Any]:
        shape = self._shape(name)
        if len(shape) < 2:
            return self._lines(name, 0, 1)[0, start:stop].reshape(-1 if shape else ()).copy()
        stop = shape[0] if stop is None else stop
        lines = prod(shape[1:-1])
        block = self._lines(name, start * lines, (stop - start) * lines)
        return block.reshape(stop - start, *shape[1:])

    def read_flat(self, name: str, start: int, stop: int) -> np.ndarray[Any, Any]:
        columns = max(1, (self._shape(name) or (1,))[-1])
        first = start // columns
        block = self._lines(name, first, -(-stop // columns) - first).reshape(-1)
        return block[start - first * columns : stop - first * columns]

    def _shape(self, name: str) -> tuple[int, ...]:
        stored, _, part = name.partition("#")
        shape = self._stored[stored].shape
        if not part:
            return shape
        bits = _AFFINE[self._type(self._stored[stored])]
        last = shape[-1] * bits // 32 if part == "codes" else shape[-1] // _GROUP
        return (*shape[:-1], last)

    def _lines(self, name: str, first: int, count: int) -> np.ndarray[Any, Any]:
        """`count` runs along the last axis, one a row, decoded in pieces of bounded size."""
        stored, _, part = name.partition("#")
        tensor = self._stored[stored]
        if part:
            return self._grid_lines(tensor, part, first, count)
        if self._type(tensor) in _PLAIN:
            return self._raw(tensor, first, count).view(self._infos[name].dtype.numpy)
        import gguf

        kind = gguf.GGMLQuantizationType(tensor.type)
        columns = tensor.shape[-1]
        block = np.empty((count, columns), np.float32)
        step = max(1, _DECODED // max(1, columns))
        for at in range(0, count, step):
            raw = self._raw(tensor, first + at, min(step, count - at))
            block[at : at + len(raw)] = gguf.dequantize(raw, kind)
        return block

    def _raw(self, tensor: BlockTensor, first: int, count: int) -> np.ndarray[Any, Any]:
        """Bytes of `count` runs along the last axis, one a row."""
        raw = np.empty((count, tensor.row_bytes), np.uint8)
        offset = tensor.offset + first * tensor.row_bytes
        self._reads.fill(raw, tensor.file, offset, tensor.name)
        return raw

    def _grid_lines(
        self, tensor: BlockTensor, part: str, first: int, count: int
    ) -> np.ndarray[Any, Any]:
        """Codes, scales or biases of `count` runs along the last axis."""
        kind = self._type(tensor)
        raw = self._raw(tensor, first, count)
        groups = tensor.shape[-1] // _GROUP
        blocks = raw.reshape(count, groups, tensor.row_bytes // max(1, groups))
        if part == "codes":
            return _codes(kind, blocks)
        result = _scales(blocks) if part == "scales" else _biases(kind, blocks)
        if not np.isfinite(result).all():
            raise NumericError(
                f"{tensor.file}: tensor {tensor.name!r}: {part} of its {kind} "
                "grid do not fit in float16; convert without keeping the grid"
            )
        return result

    def close(self) -> None:
        self._reads.close()


def _codes(kind: str, blocks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Blocks [rows, groups, bytes] → MLX's packed codes, little-endian in uint32."""
    if kind == "Q8_0":
        codes = np.ascontiguousarray(blocks[:, :, 2:]) ^ np.uint8(0x80)  # int8 + 128
    else:
        # Byte j of a block holds element j in its low and element j + 16 in its high half.
        pairs = blocks[:, :, (2 if kind == "Q4_0" else 4) :]
        elements = np.concatenate([pairs & 0x0F, pairs >> 4], axis=-1)
        codes = elements[:, :, 0::2] | (elements[:, :, 1::2] << 4)
    lines = np.ascontiguousarray(codes).reshape(len(blocks), codes.shape[1] * codes.shape[2])
    return lines.view("<u4")


def _scales(blocks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(blocks[:, :, :2]).view("<f2")[:, :, 0]


def _biases(kind: str, blocks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if kind == "Q4_1":
        return np.ascontiguousarray(blocks[:, :, 2:4]).view("<f2")[:, :, 0]
    # A power of two times a float16 is exact unless it overflows, which the caller checks.
    with np.errstate(over="ignore"):
        return _scales(blocks) * np.float16(-8 if kind == "Q4_0" else -128)
