"""A pipeline's folder: what model_index.json names, loaded one model at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch2mlx.compiler.pipelines.kinds import INDEX
from torch2mlx.errors import SourceError, UnsupportedError
from torch2mlx.sources.local_files import read_json_object, stays_inside

__all__ = ["Pipeline", "checked_weights", "class_of", "read_pipeline"]

_LIBRARIES = ("diffusers", "transformers")
# Beside the picture: what it may not show.  It needs no weights here.
_LEFT_OUT = {"safety_checker": "marks pictures", "image_encoder": "reads pictures"}
_WEIGHTS = (".safetensors", ".bin", ".pt", ".ckpt")


@dataclass(frozen=True)
class Pipeline:
    """What a pipeline is made of.

    Attributes:
        name: class of the pipeline.
        folder: with model_index.json and a folder for each component.
        models: component → (library, class) of those that have weights.
        others: components without weights: tokenizers, schedulers, processors.
        notes: what is left out.
    """

    name: str
    folder: Path
    models: Mapping[str, tuple[str, str]]
    others: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def load(self, component: str) -> Any:
        """The float32 model of a component.

        Raises:
            SourceError: files are missing or damaged, or lack weights.
        """
        import torch

        library, class_name = self.models[component]
        folder = self.folder / component
        kind = class_of(library, class_name)
        options: dict[str, Any] = {"local_files_only": True, "output_loading_info": True}
        options |= {"dtype" if library == "transformers" else "torch_dtype": torch.float32}
        variant = _variant(folder)
        if variant:
            options["variant"] = variant
        try:
            model, info = kind.from_pretrained(str(folder), **options)
        except Exception as error:  # whatever a damaged folder provokes
            raise SourceError(
                f"{folder}: {library} cannot load it as {class_name}: {str(error)[:400]}; download "
                "it again"
            ) from error
        problems = [*info["missing_keys"], *(str(m) for m in info.get("mismatched_keys", ()))]
        checked_weights(str(folder), class_name, problems)
        return model.eval()


def class_of(library: str, class_name: str) -> Any:
    """A class of diffusers or transformers.

    Raises:
        UnsupportedError: the library, or its version with this class, is not installed.
    """
    import importlib

    try:
        return getattr(importlib.import_module(library), class_name)
    except (ImportError, AttributeError) as error:
        raise UnsupportedError(
            f"{class_name} of {library} is needed ({error}); install it: pip install -U {library}"
        ) from error


def read_pipeline(folder: Path) -> Pipeline:
    """The components that model_index.json names, checked before anything is loaded.

    Raises:
        SourceError: a component's folder is missing or leads out of the pipeline.
        UnsupportedError: a model of a class whose inputs are not known here, or of code of its own.
    """
    from torch2mlx.compiler.pipelines.parts import PARTS

    index = read_json_object(folder / INDEX)
    models: dict[str, tuple[str, str]] = {}
    others, missing, unknown, notes = [], [], [], []
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, list) or len(entry) != 2 or not entry[1]:
            continue
        library, class_name = str(entry[0]), str(entry[1])
        place = folder / name
        if name in _LEFT_OUT:
            notes.append(f"left out {name}, which {_LEFT_OUT[name]}")
        elif not place.is_dir():
            missing.append(name)
        elif not stays_inside(folder, place):
            raise SourceError(f"{place}: a link that leads out of the pipeline's folder")
        elif not (place / "config.json").is_file():
            others.append(name)
        elif class_name in PARTS and library in _LIBRARIES:
            models[name] = (library, class_name)
        else:
            unknown.append(f"{name} ({library}.{class_name})")
    if missing:
        raise SourceError(
            f"{folder}: {INDEX} names {', '.join(missing)}, but there is no such folder; download "
            "the whole pipeline"
        )
    if unknown:
        raise UnsupportedError(
            f"{folder}: how {', '.join(unknown)} is called is not known here (known: "
            f"{', '.join(sorted(PARTS))}); convert each model by itself: torch2mlx convert "
            "package.module:factory"
        )
    if not models:
        raise SourceError(f"{folder}: {INDEX} names no model with weights")
    return Pipeline(str(index.get("_class_name")), folder, models, tuple(others), tuple(notes))


def _variant(folder: Path) -> str | None:
    """The variant (fp16 ...) of the weights, where there are no others."""
    names = [p.name for p in folder.iterdir() if p.suffix in _WEIGHTS]
    variants = {
        parts[1] for n in names if len(parts := n.removesuffix(Path(n).suffix).split(".")) > 1
    }
    plain = any(len(n.removesuffix(Path(n).suffix).split(".")) == 1 for n in names)
    return None if plain or len(variants) != 1 else variants.pop()


def checked_weights(where: str, class_name: str, missing: Iterable[str]) -> None:
    """Raise SourceError for weights that a model lacks.

    Args:
        where: file or folder, for the message.
        class_name: of the model.
        missing: names.
    """
    names = [n for n in missing if not n.endswith("position_ids")]
    if names:
        raise SourceError(
            f"{where}: {len(names)} weights of {class_name} are missing: {', '.join(names[:6])}; "
            "the file is damaged or another model's"
        )
