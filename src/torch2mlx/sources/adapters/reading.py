"""An adapter's files: its config, its tensors, and what they change in a base checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch2mlx.errors import SourceError
from torch2mlx.planning.expressions import Expr, Source
from torch2mlx.sources.adapters.merging import LowRank
from torch2mlx.sources.base import TensorSource
from torch2mlx.sources.joined import PrefixedSource
from torch2mlx.sources.local_files import read_json_object
from torch2mlx.sources.safetensors import SafetensorsSource

__all__ = ["CONFIG", "PREFIX", "WEIGHTS", "Changes", "Stored", "open_tensors"]

CONFIG = "adapter_config.json"
PREFIX = "adapter:"
WEIGHTS = ("adapter_model.safetensors", "adapters.safetensors", "adapter_model.bin")

Stored = dict[str, Expr]


@dataclass
class Changes:
    """What an adapter says of a base checkpoint, by the names of the base's tensors.

    Attributes:
        low_rank: changes of weights.
        added: (tensor, scale) to be added, such as the bias of an adapter's second matrix.
        replaced: tensors that the adapter brings whole.
        problems: what does not fit, one line each.
    """

    low_rank: dict[str, LowRank] = field(default_factory=dict)
    added: dict[str, tuple[Expr, float]] = field(default_factory=dict)
    replaced: Stored = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def open_tensors(folder: Path) -> tuple[dict[str, Any], TensorSource, Stored]:
    """Config, source and tensors of an adapter; in the source their names begin with `PREFIX`.

    Raises:
        SourceError: files are missing or damaged.
    """
    if not (folder / CONFIG).is_file():
        raise SourceError(
            f"{folder}: no adapter: {CONFIG} is missing; give a folder that PEFT or mlx-lm saved"
        )
    config = read_json_object(folder / CONFIG)
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise SourceError(
            f"{folder}: {CONFIG} but no weights; expected one of {', '.join(WEIGHTS)}"
        )
    if weights.suffix == ".safetensors":
        own: TensorSource = SafetensorsSource([weights])
    else:
        from torch2mlx.sources.torch_zip import TorchZipSource

        own = TorchZipSource([weights])
    source = PrefixedSource(PREFIX, own)
    tensors: Mapping[str, Expr] = {
        name.removeprefix(PREFIX): Source(name, info.dtype, info.shape)
        for name, info in source.tensors.items()
    }
    return config, source, dict(tensors)
