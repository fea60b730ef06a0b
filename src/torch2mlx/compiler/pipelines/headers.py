"""The tensors of a pipeline's models under one roof, from headers alone."""

from __future__ import annotations

from pathlib import Path

from torch2mlx.compiler.pipelines.kinds import INDEX, is_single_file
from torch2mlx.compiler.pipelines.source import read_pipeline
from torch2mlx.planning.expressions import Source
from torch2mlx.sources import open_checkpoint
from torch2mlx.sources.base import Checkpoint, TensorSource
from torch2mlx.sources.joined import JoinedSource, PrefixedSource

__all__ = ["open_headers"]

# Where a folder holds the same weights several times, the file that diffusers takes.
_FIRST = tuple(
    f"{stem}.safetensors{index}"
    for stem in ("diffusion_pytorch_model", "model")
    for index in (".index.json", "")
)


def open_headers(path: Path) -> Checkpoint:
    """A pipeline as a checkpoint, to be looked at; names begin with the component's.

    Raises:
        SourceError, UnsupportedError: see `read_pipeline` and `open_checkpoint`.
    """
    if is_single_file(path):
        source = open_checkpoint(path, needs_config=False).source
        names: tuple[str, ...] = ()
        notes: tuple[str, ...] = ("one file, whose classes its conversion tells",)
    else:
        pipeline = read_pipeline(path)
        parts: list[TensorSource] = []
        for component in pipeline.models:
            folder = pipeline.folder / component
            chosen = next((folder / n for n in _FIRST if (folder / n).is_file()), folder)
            parts.append(
                PrefixedSource(f"{component}.", open_checkpoint(chosen, needs_config=False).source)
            )
        source = JoinedSource(*parts)
        names = (pipeline.name,)
        notes = (f"models: {', '.join(pipeline.models)}", *pipeline.notes)
    return Checkpoint(
        location=str(path),
        folder=path if path.is_dir() else path.parent,
        kind=_kind(source),
        config={"model_type": Path(INDEX).stem, "architectures": list(names)},
        source=source,
        state={name: Source(name, i.dtype, i.shape) for name, i in source.tensors.items()},
        notes=notes,
    )


def _kind(source: TensorSource) -> str:
    return "safetensors" if source.files[0].suffix == ".safetensors" else "torch"
