"""An encoder-decoder of transformers, whose examples are known, as a compiled folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch2mlx.compiler.encoder_decoder.methods import (
    load_encoder_decoder,
    load_original,
    methods_of,
)
from torch2mlx.compiler.entry_points import EntryPoint
from torch2mlx.compiler.package import prepare_module
from torch2mlx.compiler.prepared import Extras, Prepared
from torch2mlx.compiler.pretrained.loading import own_dtype
from torch2mlx.compiler.publish import CompiledModule, publish
from torch2mlx.errors import OptionError
from torch2mlx.options import ConvertOptions
from torch2mlx.progress import Progress
from torch2mlx.sources.companions import companion_files, read_config

__all__ = ["compile_checkpoint", "compile_model", "prepare_checkpoint"]


def compile_checkpoint(
    path: Path, destination: str | Path, options: ConvertOptions, progress: Progress
) -> CompiledModule:
    """A folder of transformers, or a file of OpenAI's Whisper.

    Raises:
        SourceError: see `load_encoder_decoder` and `load_original`.
        OptionError, CompileError, ParityError: as `compile_model`.
    """
    return publish(destination, prepare_checkpoint(path, options), progress)


def prepare_checkpoint(path: Path, options: ConvertOptions) -> Prepared:
    """The same, and nothing is written."""
    files: Mapping[str, Path] = {}
    if path.is_file():
        model = load_original(path)
    else:
        model, files = load_encoder_decoder(path), companion_files(path)
        options = replace(options, dtype=options.dtype or own_dtype(read_config(path), model))
    return _prepare_model(model, options, str(path), files)


def compile_model(
    model: Any,
    destination: str | Path,
    options: ConvertOptions,
    progress: Progress,
    location: str = "",
) -> CompiledModule:
    """A model in memory.

    Args:
        model: of which `is_encoder_decoder` is true.
        destination: folder to create.
        options: dtype, quantization, shards, memory, verification.
        progress: listener.
        location: what the user calls it, for the manifest.

    Raises:
        OptionError: weights from elsewhere.
        CompileError, ParityError: as `compile_module`.
    """
    name = location or f"{type(model).__module__}.{type(model).__qualname__}"
    return publish(destination, _prepare_model(model, options, name, {}), progress)


def _prepare_model(
    model: Any, options: ConvertOptions, location: str, files: Mapping[str, Path]
) -> Prepared:
    if options.weights is not None:
        raise OptionError("--weights: an encoder-decoder has its own weights; leave it out")
    made = methods_of(model.eval())
    points = [
        EntryPoint(method, (), arguments, made.dynamic_shapes[method])
        for method, arguments in made.entry_points.items()
    ]
    settings = {"generation": {**made.settings, "dtype": options.dtype or "float32"}}
    return prepare_module(
        made.module,
        points,
        options=options,
        location=location,
        extras=Extras(settings, files),
    )
