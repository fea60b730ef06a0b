"""What every source of tensors offers: names, dtypes and shapes first, rows on demand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torch2mlx.dtypes import DType

if TYPE_CHECKING:
    from torch2mlx.planning.expressions import Expr

__all__ = ["Checkpoint", "Packed", "TensorInfo", "TensorSource"]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One stored tensor, known from a header alone.

    Attributes:
        name: the name in the file.
        dtype, shape: of its values.
        file: where it lives, for messages.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: Path

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values (not of the packed form that a file may hold)."""
        return self.size * self.dtype.itemsize


class TensorSource(ABC):
    """Tensors of one checkpoint, opened by header, read in row blocks with plain file reads.

    Memory-mapped pages count as resident memory, so readers use `pread` into buffers that
    they hand over, never a map of the file.
    """

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name."""

    @abstractmethod
    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray[Any, Any]:
        """Rows [start, stop) along axis 0 as a bit view (see `torch2mlx.dtypes`), C-contiguous
        and owned by the caller.  A 0-d tensor is read whole.

        Raises:
            SourceError: the file ends early or its data cannot be decoded; names file and tensor.
        """

    def read_flat(self, name: str, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Elements [start, stop) in row-major order as a 1-d bit view.

        Reads whole rows of axis 0 and cuts; sources that can read any range override it.
        """
        shape = self.tensors[name].shape
        inner = max(1, prod(shape[1:]))
        first = start // inner
        block = self.read(name, first, -(-stop // inner)).reshape(-1)
        return block[start - first * inner : stop - first * inner]

    @property
    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """Files that hold the tensors, sorted."""

    def close(self) -> None:
        """Release file handles."""


@dataclass(frozen=True)
class Packed:
    """A tensor that its file already holds on a grid which a format of MLX can express.

    What MLX decodes in float32 is the tensor's value exactly (0.0 may stand for -0.0).

    Attributes:
        bits, group_size: of the grid, along the last axis.
        weight, scales, biases: expressions of the MLX tensors, over stored or virtual tensors of
            the same source (readable, but not listed in `tensors`); rows correspond to rows of
            the tensor.  Only mode "affine" has biases.
        mode: MLX's name of the format.
        transposed: the checkpoint's tensor is a transpose (of the last two axes) of the one that
            lies on the grid.
    """

    bits: int
    group_size: int
    weight: Expr
    scales: Expr
    biases: Expr | None
    mode: str = "affine"
    transposed: bool = False

    def moved(self, move: Callable[[Expr], Expr]) -> Packed:
        """The grid with its tensors moved as those of the weight are."""
        biases = None if self.biases is None else move(self.biases)
        return replace(self, weight=move(self.weight), scales=move(self.scales), biases=biases)

    @property
    def parts(self) -> dict[str, Expr]:
        """The expressions by the suffix of the MLX tensor's name."""
        found = {"weight": self.weight, "scales": self.scales}
        return found if self.biases is None else {**found, "biases": self.biases}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as a Hugging Face user sees it, whatever its files are.

    Attributes:
        location: what the user named: a folder, a file, a hub id or a URL without credentials.
        folder: the local folder with config and tokenizer files.
        kind: "safetensors", "torch", "gguf", "original" for a release in its authors' layout, or
            "mlx" for a quantized MLX folder.
        config: config.json as a dict (made from the metadata where the format has none).
        generation_config: generation_config.json, or {}.
        source: where the stored tensors are read.
        state: tensors under their Hugging Face names, as expressions over `source`.
        packed: names of `state` that a format of MLX can take without loss; it may read scales and
            zero points to tell which.
        plain: names of `state` that a packed checkpoint holds in floating point all the same.
        tokenizer_files: files to be copied byte for byte, by name in the output; those of a GGUF
            file are made when first asked for, and last as long as the checkpoint; those of a
            remote one are fetched into `folder` when first asked for.
        tokenizer_folder: where transformers finds the tokenizer, if not in `folder`; None: there.
        card: fetches the model card of a remote one; None: `folder` has it, or there is none.
        notes: what a user should know (skipped files, alternatives ...).
    """

    location: str
    folder: Path
    kind: str
    config: dict[str, Any]
    source: TensorSource
    state: Mapping[str, Expr]
    generation_config: dict[str, Any] = field(default_factory=dict)
    packed: Mapping[str, Packed] = field(default_factory=dict)
    plain: frozenset[str] = frozenset()
    tokenizer_files: Mapping[str, Path] = field(default_factory=dict)
    tokenizer_folder: Callable[[], Path] | None = None
    card: Callable[[], Path] | None = None
    notes: tuple[str, ...] = ()

    @property
    def tokenizer_source(self) -> Path:
        """Where transformers finds the original tokenizer: the folder, or the GGUF file."""
        if self.kind == "gguf":
            return self.source.files[0]
        if self.tokenizer_folder is not None:
            return self.tokenizer_folder()
        for name in self.tokenizer_files:
            self.tokenizer_files[name]  # fetched by now
        return self.folder
