"""A pipeline as one folder: a compiled model for each component, all published at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch2mlx.compiler.package import prepare_module
from torch2mlx.compiler.pipelines.kinds import INDEX, is_single_file
from torch2mlx.compiler.pipelines.parts import PARTS
from torch2mlx.compiler.pipelines.single_file import opened_single_file
from torch2mlx.compiler.pipelines.source import Pipeline, read_pipeline
from torch2mlx.compiler.prepared import Extras, Prepared
from torch2mlx.compiler.publish import CompiledModule, publish
from torch2mlx.conversion.identity import SourceState
from torch2mlx.options import ConvertOptions
from torch2mlx.packaging.manifest import Manifest, library_versions, read_manifest
from torch2mlx.packaging.staging import Staging, check_destination
from torch2mlx.progress import Progress
from torch2mlx.sources.companions import check_companion
from torch2mlx.sources.local_files import read_json_object
from torch2mlx.verification.reference import quiet

__all__ = ["ConvertedPipeline", "convert_pipeline", "prepare_pipeline"]

_MANIFEST = "torch2mlx.json"
_COPIED = (".json", ".txt", ".model", ".jinja")


@dataclass(frozen=True)
class ConvertedPipeline:
    """A published pipeline.

    Attributes:
        folder: with a folder for each component.
        name: class of the pipeline.
        manifests: component → what its torch2mlx.json says.
        operators: number of ATen calls of the models that this run compiled.
        quantization: component → the entry of its config.json, of those that are quantized.
        notes: what a user should know.
    """

    folder: Path
    name: str
    manifests: Mapping[str, Manifest]
    operators: int
    quantization: Mapping[str, Any]
    notes: tuple[str, ...]


def convert_pipeline(
    source: Path, destination: str | Path, options: ConvertOptions, progress: Progress
) -> ConvertedPipeline:
    """Compile each model of a pipeline, compare it with PyTorch, and publish all of them at once.

    One model is in memory at a time; of a single file the weights of all are.  A stopped run goes
    on with the first model that was not finished.

    Args:
        source: folder with model_index.json, or a single file.
        destination: folder to create.
        options: for each model; those of language models are refused before.
        progress: listener.

    Raises:
        SourceError, UnsupportedError: see `read_pipeline` and `opened_single_file`.
        CompileError, ParityError: of a model; nothing is published.
    """
    check_destination(destination)
    with _opened(source) as pipeline:
        state = SourceState.take(_files(source, pipeline))
        identity = {
            "source": state.to_dict(source if source.is_dir() else source.parent),
            "options": options.to_dict(),
            "versions": library_versions(),
        }
        with Staging(
            destination, identity=identity, restart=options.restart, wait=options.wait
        ) as staging:
            manifests: dict[str, Manifest] = {}
            operators = 0
            for component in pipeline.models:
                made = _compile(pipeline, component, source, staging, options, progress)
                operators += made.operators if made is not None else 0
                manifests[component] = read_manifest(staging.folder / component)
            _copy_others(pipeline, staging.folder)
            _describe(pipeline, staging.folder, manifests)
            state.check(thorough=True)
            configs = {n: read_json_object(staging.folder / n / "config.json") for n in manifests}
            formats = {n: c["quantization"] for n, c in configs.items() if "quantization" in c}
            return ConvertedPipeline(
                staging.publish(), pipeline.name, manifests, operators, formats, pipeline.notes
            )


@contextmanager
def _opened(source: Path) -> Iterator[Pipeline]:
    if is_single_file(source):
        with opened_single_file(source) as pipeline:
            yield pipeline
    else:
        yield read_pipeline(source)


def _files(source: Path, pipeline: Pipeline) -> list[Path]:
    """Everything that decides the result."""
    places = [pipeline.folder / n for n in (*pipeline.models, *pipeline.others)]
    inside = [p for place in places for p in place.rglob("*") if p.is_file()]
    if source.is_dir():
        return [pipeline.folder / INDEX, *inside]
    return [source, *(p for p in inside if p.is_relative_to(source.parent))]


def _compile(
    pipeline: Pipeline,
    component: str,
    source: Path,
    staging: Staging,
    options: ConvertOptions,
    progress: Progress,
) -> CompiledModule | None:
    """One model; None where an earlier run finished it."""
    folder = staging.folder / component
    assert staging.journal is not None
    if staging.journal.knows(folder / _MANIFEST):
        progress.note(f"going on: {component} is finished")
        return None
    progress.note(f"{component}: {pipeline.models[component][1]}")
    try:
        made = publish(folder, _prepared(pipeline, component, source, options), progress)
    except KeyboardInterrupt:
        # What it says is kept lies in the folder of this run, which says what is kept of it.
        raise KeyboardInterrupt from None
    # The manifest is last: it says that the rest is there.
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    for path in sorted(files, key=lambda p: p.name == _MANIFEST):
        staging.journal.finish(path)
    return made


def prepare_pipeline(source: Path, options: ConvertOptions) -> Iterator[tuple[str, Prepared]]:
    """Compile one model after the other and write nothing; errors as of `convert_pipeline`."""
    with _opened(source) as pipeline:
        for component in pipeline.models:
            yield component, _prepared(pipeline, component, source, options)


def _prepared(
    pipeline: Pipeline, component: str, source: Path, options: ConvertOptions
) -> Prepared:
    with quiet():
        model = pipeline.load(component)
    part = PARTS[pipeline.models[component][1]](model)
    return prepare_module(
        part.module.eval(),
        part.entry_points,
        options=options,
        location=f"{source}/{component}",
        extras=Extras(),
    )


def _copy_others(pipeline: Pipeline, folder: Path) -> None:
    """Tokenizers, schedulers and processors, byte for byte."""
    for name in pipeline.others:
        for path in sorted((pipeline.folder / name).rglob("*")):
            if path.is_file() and path.suffix in _COPIED:
                check_companion(pipeline.folder, path)
                target = folder / path.relative_to(pipeline.folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


def _describe(pipeline: Pipeline, folder: Path, manifests: Mapping[str, Manifest]) -> None:
    """model_index.json, which names the classes, and a README."""
    index: dict[str, Any] = {"_class_name": pipeline.name}
    index |= {name: list(kind) for name, kind in pipeline.models.items()}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    lines = []
    for name, manifest in manifests.items():
        error = manifest.verification.get("error")
        proof = "not compared" if error is None else f"{error:.1e}"
        lines.append(f"| `{name}/` | {pipeline.models[name][1]} | {proof} |")
    newline = "\n"
    text = f"""# {pipeline.name} for MLX

Each folder is a model by itself: `model.py`, its weights, and a README that says how it is called.
It needs MLX alone; the loop over the steps is the caller's.

| | model | relative L2 error against PyTorch |
|---|---|---|
{newline.join(lines)}
"""
    (folder / "README.md").write_text(text, encoding="utf-8")
