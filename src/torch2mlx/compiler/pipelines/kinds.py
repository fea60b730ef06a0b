"""Which sources are pipelines of diffusers, told from names and headers without torch."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from torch2mlx.errors import SourceError
from torch2mlx.sources.base import TensorSource
from torch2mlx.sources.safetensors import SafetensorsSource
from torch2mlx.sources.torch_zip import TorchZipSource

__all__ = ["DENOISERS", "INDEX", "is_pipeline", "is_single_file", "weights_of_file"]

INDEX = "model_index.json"

DENOISERS = ("model.diffusion_model.", "double_blocks.0.")
"""What names of a denoiser begin with in single files."""


def is_pipeline(path: Path) -> bool:
    """Whether a path is a pipeline's folder or a single file of one."""
    return (path / INDEX).is_file() or is_single_file(path)


def is_single_file(path: Path) -> bool:
    """Whether a file holds the models of a pipeline under their authors' names."""
    if path.suffix not in (".safetensors", ".ckpt") or not path.is_file():
        return False
    try:
        with closing(weights_of_file(path)) as source:
            return any(n.startswith(DENOISERS) for n in source.tensors)
    except SourceError:
        return False  # told by whoever opens it as a checkpoint


def weights_of_file(path: Path) -> TensorSource:
    """The tensors of a .safetensors or .ckpt file; nothing in it is run."""
    return TorchZipSource([path]) if path.suffix == ".ckpt" else SafetensorsSource([path])
