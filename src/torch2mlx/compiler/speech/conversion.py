"""A speech model of transformers, whose examples are known, as a compiled folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch2mlx.compiler.package import prepare_module
from torch2mlx.compiler.prepared import Extras, Prepared
from torch2mlx.compiler.publish import CompiledModule, publish
from torch2mlx.compiler.speech.synthesizer import load_speech_model, parts_of
from torch2mlx.options import ConvertOptions
from torch2mlx.progress import Progress
from torch2mlx.sources.companions import companion_files

if TYPE_CHECKING:
    import torch

__all__ = ["compile_speech", "prepare_speech"]


def compile_speech(
    source: Path | torch.nn.Module,
    destination: str | Path,
    options: ConvertOptions,
    progress: Progress,
) -> CompiledModule:
    """Compile the folder of a checkpoint, or the module.

    Raises:
        SourceError, UnsupportedError: see `load_speech_model` and `parts_of`.
        CompileError, ParityError: as `compile_module`.
    """
    return publish(destination, prepare_speech(source, options), progress)


def prepare_speech(source: Path | torch.nn.Module, options: ConvertOptions) -> Prepared:
    """The same, and nothing is written."""
    if isinstance(source, Path):
        model, files, location = load_speech_model(source), companion_files(source), str(source)
    else:
        model, files = source, {}
        location = f"{type(model).__module__}.{type(model).__qualname__}"
    made = parts_of(model)
    return prepare_module(
        made.module,
        made.entry_points,
        options=options,
        location=location,
        extras=Extras(files=files, host=made.host, notes=made.notes),
    )
