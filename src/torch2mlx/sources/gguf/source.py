"""GGUF tensors, dequantized by row blocks, and their 4- and 8-bit grids in MLX's layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        self._reads = PositionalFiles()
        self._stored: dict[str, BlockTensor] = {}
        self.metadata: dict[str, Any] = {}
        for path in self._files:
            header = read_gguf_header(path, sizes)
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
        stored, _, part = name.partition("#")
        tensor = self._stored[stored]
        if part:
            return self._read_packed(tensor, part, start, stop)
        dtype = self._infos[name].dtype.numpy
        if len(tensor.shape) < 2:
            whole = self._values(tensor, self._raw(tensor, 0, 1)[0])
            return np.ascontiguousarray(whole[start:stop], dtype).reshape(
                (-1,) if tensor.shape else ()
            )
        stop = tensor.shape[0] if stop is None else stop
        if self._type(tensor) in _PLAIN:
            block = np.empty((stop - start, *tensor.shape[1:]), dtype)
            rows = block.nbytes // max(1, stop - start)
            self._reads.fill(block, tensor.file, tensor.offset + start * rows, name)
            return block
        block = np.empty((stop - start, *tensor.shape[1:]), np.float32)
        lines = block.reshape(-1, tensor.shape[-1])
        first = start * (lines.shape[0] // max(1, stop - start))
        step = max(1, _DECODED // max(1, tensor.shape[-1]))
        for at in range(0, len(lines), step):
            count = min(step, len(lines) - at)
            lines[at : at + count] = self._values(tensor, self._raw(tensor, first + at, count))
        return block

    def _raw(self, tensor: BlockTensor, first: int, count: int) -> np.ndarray[Any, Any]:
        """Bytes of `count` runs along the last axis, one a row."""
        raw = np.empty((count, tensor.row_bytes), np.uint8)
        offset = tensor.offset + first * tensor.row_bytes
        self._reads.fill(raw, tensor.file, offset, tensor.name)
        return raw

    def _values(self, tensor: BlockTensor, raw: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if self._type(tensor) in _PLAIN:
            return raw.view(DTYPES[self._type(tensor)].numpy)
        import gguf

        return gguf.dequantize(raw, gguf.GGMLQuantizationType(tensor.type))

    def _read_packed(
        self, tensor: BlockTensor, part: str, start: int, stop: int | None
    ) -> np.ndarray[Any, Any]:
        stop = tensor.shape[0] if stop is None else stop
        lines = int(np.prod(tensor.shape[1:-1], dtype=np.int64))
        raw = self._raw(tensor, start * lines, (stop - start) * lines)
        kind = self._type(tensor)
        blocks = raw.reshape(raw.shape[0], tensor.shape[-1] // _GROUP, -1)
        if part == "codes":
            result = _codes(kind, blocks)
        else:
            result = _scales(kind, blocks) if part == "scales" else _biases(kind, blocks)
            if not np.isfinite(result).all():
                raise NumericError(
                    f"{tensor.file}: tensor {tensor.name!r}: a {part[:-1]} of its {kind} grid does "
                    "not fit in float16; convert without keeping the grid"
                )
        return result.reshape(stop - start, *tensor.shape[1:-1], result.shape[-1])


def _codes(kind: str, blocks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Blocks [rows, groups, bytes] → MLX's packed codes, little-endian in uint32."""
    if kind == "Q8_0":
        codes = np.ascontiguousarray(blocks[:, :, 2:]) ^ np.uint8(0x80)  # int8 + 128
    else:
        # Byte j of a block holds element j in its low and element j + 16 in its high half.
        pairs = blocks[:, :, (2 if kind == "Q4_0" else 4) :]
        elements = np.concatenate([pairs & 0x0F, pairs >> 4], axis=-1)
        codes = elements[:, :, 0::2] | (elements[:, :, 1::2] << 4)
    return np.ascontiguousarray(codes).reshape(len(blocks), -1).view("<u4")


def _scales(kind: str, blocks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(blocks[:, :, :2]).view("<f2")[:, :, 0]


def _biases(kind: str, blocks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if kind == "Q4_1":
        return np.ascontiguousarray(blocks[:, :, 2:4]).view("<f2")[:, :, 0]
    # A power of two times a float16 is exact unless it overflows, which the caller checks.
    with np.errstate(over="ignore"):
        return _scales(kind, blocks) * np.float16(-8 if kind == "Q4_0" else -128)
