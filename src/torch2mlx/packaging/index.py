"""Names of the weight files and the index that tells which tensor is in which."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.dtypes import DTYPES
from torch2mlx.errors import SourceError
from torch2mlx.sources.local_files import read_json_object
from torch2mlx.sources.safetensors import read_header

if TYPE_CHECKING:
    from mlx.nn.layers.base import Module

__all__ = ["INDEX", "WeightSummary", "leaf_paths", "measure_weights", "write_index"]

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class WeightSummary:
    """What the written weight files hold, measured on the files.

    Attributes:
        total_size: bytes of all tensors.
        total_parameters: logical parameters: a packed weight counts its elements.
        files: names of the weight files, sorted.
    """

    total_size: int
    total_parameters: int
    files: tuple[str, ...]

    @property
    def bits_per_weight(self) -> float:
        """Stored bits a parameter, scales and biases included, as mlx-lm defines it."""
        return 8 * self.total_size / max(self.total_parameters, 1)


def leaf_paths(model: Module) -> frozenset[str]:
    """Paths of the modules without children, the only ones whose parameters mlx-lm counts."""
    from mlx.nn.layers.base import Module
    from mlx.utils import tree_flatten

    modules = model.leaf_modules()  # type: ignore[no-untyped-call]
    leaves = tree_flatten(modules, is_leaf=lambda m: isinstance(m, Module))
    return frozenset(str(leaf[0]) for leaf in leaves)


def write_index(
    folder: Path, bits: Mapping[str, int], leaves: Collection[str] | None = None
) -> WeightSummary:
    """Write model.safetensors.index.json from the headers of the folder's weight files.

    It is written for a single file too, as mlx-lm does.  The names are sorted.

    Args:
        folder: holds model*.safetensors.
        bits: for each quantized module its bits a weight.
        leaves: modules whose parameters count (`leaf_paths` of the model gives the number that
            mlx-lm would write, which leaves out parameters beside submodules); None: all.

    Returns:
        Sizes as measured on the files.

    Raises:
        SourceError: a weight file is damaged, holds a tensor that another one holds, or there
            is none.
    """
    tensors = _tensors(folder)
    summary = _summary(tensors, bits, leaves)
    index: dict[str, Any] = {
        "metadata": {
            "total_size": summary.total_size,
            "total_parameters": summary.total_parameters,
        },
        "weight_map": {name: tensors[name].file for name in sorted(tensors)},
    }
    text = json.dumps(index, indent=4) + "\n"
    (folder / INDEX).write_text(text, encoding="utf-8")
    return summary


def measure_weights(folder: Path) -> WeightSummary:
    """What the weight files of any folder in MLX's layout hold; all parameters count.

    Args:
        folder: holds model*.safetensors, and config.json, which says how modules are quantized.

    Raises:
        SourceError: as `write_index`; or config.json does not say how a module is quantized.
    """
    tensors = _tensors(folder)
    settings = read_json_object(folder / "config.json").get("quantization") or {}
    bits = {}
    for path in (name.removesuffix(".scales") for name in tensors if name.endswith(".scales")):
        own = settings.get(path, settings)
        found = own.get("bits") if isinstance(own, Mapping) else None
        if not isinstance(found, int) or found < 1:
            raise SourceError(
                f"{folder / 'config.json'}: names no bits under 'quantization' for {path!r}, which "
                "is quantized; restore it or convert the model again"
            )
        bits[path] = found
    return _summary(tensors, bits, None)


@dataclass(frozen=True)
class _Stored:
    """A tensor's file, its number of elements, and its bytes."""

    file: str
    size: int
    nbytes: int


def _tensors(folder: Path) -> dict[str, _Stored]:
    """The tensors of model*.safetensors by name, from the headers."""
    tensors: dict[str, _Stored] = {}
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise SourceError(f"{folder}: no model*.safetensors in it; nothing was converted")
    for path in files:
        header, _ = read_header(path)
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if name in tensors:
                raise SourceError(
                    f"{path}: tensor {name!r} is in {tensors[name].file} too; convert again"
                )
            size = prod(entry["shape"])
            tensors[name] = _Stored(path.name, size, size * DTYPES[entry["dtype"]].itemsize)
    return tensors


def _summary(
    tensors: Mapping[str, _Stored], bits: Mapping[str, int], leaves: Collection[str] | None
) -> WeightSummary:
    return WeightSummary(
        sum(stored.nbytes for stored in tensors.values()),
        sum(_parameters(name, stored.size, bits, leaves) for name, stored in tensors.items()),
        tuple(sorted({stored.file for stored in tensors.values()})),
    )


def _parameters(
    name: str, size: int, bits: Mapping[str, int], leaves: Collection[str] | None
) -> int:
    """Logical parameters of a stored tensor (`mlx_lm.utils.get_total_parameters`)."""
    module, _, leaf = name.rpartition(".")
    if leaves is not None and module not in leaves:
        return 0
    if module not in bits:
        return size
    # Of a quantized module mlx-lm counts weight and bias; scales, biases and other companions
    # of the packed weight are no parameters of the model.
    if leaf == "weight":
        return size * 32 // bits[module]
    return size if leaf == "bias" else 0
