"""A model of transformers that no port is for, as a compiled folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch2mlx.compiler.entry_points import EntryPoint
from torch2mlx.compiler.example import read_entry_points
from torch2mlx.compiler.formats import Asked
from torch2mlx.compiler.package import prepare_module
from torch2mlx.compiler.prepared import Extras, Prepared
from torch2mlx.compiler.pretrained.examples import entry_points_of
from torch2mlx.compiler.pretrained.loading import Loaded, load_pretrained, own_dtype
from torch2mlx.compiler.publish import CompiledModule, publish
from torch2mlx.compiler.verification import ProgramVerification, verify_prepared
from torch2mlx.errors import CompileError, SourceError
from torch2mlx.options import ConvertOptions
from torch2mlx.progress import Progress
from torch2mlx.sources.companions import companion_files, peek_config, read_config

__all__ = ["compile_pretrained", "prepare_pretrained", "verify_pretrained"]

_NAMED = 6  # of unused tensors
_EXAMPLE = "example"
"""Key of config.json in folders that were made on an example of the user's."""


def compile_pretrained(folder: Path, asked: Asked) -> CompiledModule:
    """Compile the class that config.json names, with the folder's weights.

    Args:
        folder: of the checkpoint.
        asked: destination, options (the dtype is the checkpoint's own, where none is asked for),
            listener, and an example or an empty one.

    Raises:
        SourceError: see `load_pretrained`.
        OptionError: no example is known for the class.
        CompileError, ParityError: as `compile_module`.
    """
    if not asked.example.given:
        return publish(asked.destination, prepare_pretrained(folder, asked.options), asked.progress)
    loaded, options = _loaded(folder, asked.options)
    points = read_entry_points(loaded.model, asked.example)
    made = _prepared(folder, loaded, points, options, _unused(loaded), {_EXAMPLE: "given"})
    return publish(asked.destination, made, asked.progress)


def prepare_pretrained(folder: Path, options: ConvertOptions) -> Prepared:
    """The same on an example made from the settings, and nothing is written.

    Of the extents of inputs as many are free as the computation lets change.
    """
    loaded, options = _loaded(folder, options)
    refused: list[CompileError] = []
    for point in entry_points_of(loaded.model, folder):
        notes = _unused(loaded)
        if refused:
            reason = str(refused[0]).splitlines()[-1].strip()
            notes.append(f"fewer extents are free than might be: {reason[:300]}")
        try:
            return _prepared(folder, loaded, [point], options, notes)
        except CompileError as error:
            refused.append(error)
    raise refused[-1]


def _loaded(folder: Path, options: ConvertOptions) -> tuple[Loaded, ConvertOptions]:
    config = read_config(folder)
    loaded = load_pretrained(folder, config["architectures"][0])
    settings = loaded.model.config
    for part in (settings, settings.get_text_config()):
        part.use_cache = False  # a cache is no output of an encoder's or a classifier's
    return loaded, replace(options, dtype=options.dtype or own_dtype(config, loaded.model))


def verify_pretrained(
    source: Path, folder: Path, options: ConvertOptions, progress: Progress
) -> ProgramVerification:
    """Hold a folder against the checkpoint that it was made from.

    Raises:
        SourceError: it was made on an example that was given, which is not kept.
        ParityError: something differs.
    """
    if _EXAMPLE in peek_config(folder):
        raise SourceError(
            f"{folder}: was made on an example of yours, which is not kept; convert the source "
            "again with it, or check the files with `verify DST --certificate`"
        )
    return verify_prepared(folder, [("", prepare_pretrained(source, options))], progress)


def _prepared(
    folder: Path,
    loaded: Loaded,
    points: list[EntryPoint],
    options: ConvertOptions,
    notes: list[str],
    settings: Mapping[str, Any] | None = None,
) -> Prepared:
    files = companion_files(folder)
    return prepare_module(
        loaded.model,
        points,
        options=options,
        location=str(folder),
        extras=Extras(settings or {}, files, notes=tuple(notes)),
    )


def _unused(loaded: Loaded) -> list[str]:
    """A note of tensors that the class has no place for."""
    if not loaded.unused:
        return []
    names = ", ".join(loaded.unused[:_NAMED])
    more = f" and {len(loaded.unused) - _NAMED} more" if len(loaded.unused) > _NAMED else ""
    return [f"{type(loaded.model).__name__} has no place for {names}{more}: not converted"]
