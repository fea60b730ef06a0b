"""How many bits a weight really takes, measured on the written files and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch2mlx.dtypes import DTYPES
from torch2mlx.errors import OptionError, SourceError
from torch2mlx.quantization.scheme import Scheme
from torch2mlx.sources.base import TensorInfo
from torch2mlx.sources.local_files import read_json_object
from torch2mlx.sources.safetensors import SafetensorsSource

__all__ = ["BitsReport", "ModuleBits", "measure_bits_per_weight"]

_OVERHEAD = ("scales", "biases", "global_scale")


@dataclass(frozen=True)
class ModuleBits:
    """What one module takes.

    Attributes:
        path: dotted path ("" for tensors at the top).
        scheme: how its weight is stored, None for unquantized.
        weights: number of logical weights, its bias and other parameters included.
        nbytes: bytes of all its tensors.
    """

    path: str
    scheme: Scheme | None
    weights: int
    nbytes: int

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each logical weight."""
        return 8 * self.nbytes / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class BitsReport:
    """What a model folder takes.

    Attributes:
        modules: every module that owns tensors, sorted by path.
    """

    modules: tuple[ModuleBits, ...]

    @property
    def weights(self) -> int:
        """Logical weights of the model."""
        return sum(module.weights for module in self.modules)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, headers not counted."""
        return sum(module.nbytes for module in self.modules)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each logical weight of the model."""
        return 8 * self.nbytes / self.weights if self.weights else 0.0


def measure_bits_per_weight(folder: Path) -> BitsReport:
    """Bits per weight of a folder in MLX's layout, from the headers and config.json.

    A logical weight is an element of the unquantized model: of a quantized weight the codes are
    counted, its scales and biases are overhead; everything else counts as it is stored.
    mlx-lm's figure has the same definition over the loaded model.  It differs where a port
    computes arrays that no file holds (rotary frequencies, masks): mlx-lm counts their bytes.

    Args:
        folder: holds `model*.safetensors`, which is what mlx-lm loads, and config.json.

    Raises:
        SourceError: no such files, a damaged one, or tensors that are not in the format that
            config.json names.
    """
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise SourceError(
            f"{folder}: no model*.safetensors found; name a folder that holds an MLX model"
        )
    config = read_json_object(folder / "config.json")
    quantization = config.get("quantization") or {}
    source = SafetensorsSource(files)
    source.close()
    owned: dict[str, dict[str, TensorInfo]] = {}
    for name, info in source.tensors.items():
        path, _, leaf = name.rpartition(".")
        owned.setdefault(path, {})[leaf] = info
    return BitsReport(
        tuple(_measure(path, tensors, quantization) for path, tensors in sorted(owned.items()))
    )


def _measure(
    path: str, tensors: Mapping[str, TensorInfo], quantization: Mapping[str, Any]
) -> ModuleBits:
    nbytes = sum(info.nbytes for info in tensors.values())
    if "scales" not in tensors or "weight" not in tensors:
        return ModuleBits(path, None, sum(info.size for info in tensors.values()), nbytes)
    scheme = _scheme_of(path, tensors, quantization)
    codes = tensors["weight"].size * 32 // scheme.bits
    others = (info.size for leaf, info in tensors.items() if leaf not in ("weight", *_OVERHEAD))
    return ModuleBits(path, scheme, codes + sum(others), nbytes)


def _scheme_of(
    path: str, tensors: Mapping[str, TensorInfo], quantization: Mapping[str, Any]
) -> Scheme:
    """The format that config.json names for a module, checked against its tensors."""
    weight, scales = tensors["weight"], tensors["scales"]
    entry = quantization.get(path, quantization)
    where = f"{weight.file}: module '{path}'"
    if not isinstance(entry, Mapping) or not entry:
        raise SourceError(
            f"{where} is quantized, but config.json names no format for it under 'quantization'; "
            "restore config.json or convert the model again"
        )
    try:
        scheme = Scheme.resolve(
            entry.get("bits"), entry.get("group_size"), entry.get("mode", "affine")
        )
        shape = (*scales.shape[:-1], scales.shape[-1] * scheme.group_size) if scales.shape else ()
        dtype = scales.dtype if scheme.affine else DTYPES["BF16"]
        expected = scheme.layout(shape, dtype)
    except OptionError as error:
        raise SourceError(
            f"{where}: config.json and the file's scales ({_show(scales)}) do not fit: {error}"
        ) from None
    for leaf in ("scales", "weight", "biases"):
        want, info = expected.get(leaf), tensors.get(leaf)
        if want != (info and (info.dtype, info.shape)):
            raise SourceError(
                f"{where}: config.json says {scheme}; expected for scales of {list(scales.shape)}: "
                f"'{leaf}' {f'{want[0]} {list(want[1])}' if want else 'absent'}; found: "
                f"{_show(info) if info else 'none'}; convert the model again"
            )
    return scheme


def _show(info: TensorInfo) -> str:
    return f"{info.dtype} {list(info.shape)}"
