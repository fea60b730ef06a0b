"""Files beside the weights: config, tokenizer, processor, chat templates, licence."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch2mlx.errors import SourceError
from torch2mlx.sources.local_files import read_json_object, refuse_lfs_pointer, stays_inside

__all__ = [
    "CARD",
    "check_companion",
    "companion_files",
    "is_companion",
    "peek_config",
    "read_config",
    "read_generation_config",
]

CARD = "README.md"
"""The model card, which says what is the original's: its output has a card of its own."""

# Everything that a tokenizer, a processor or `generate` of transformers may want to load, and
# what sentence-transformers does with the hidden states: pooling, and small layers behind it.
_COMPANION = re.compile(
    r"tokenizer[\w.\-]*\.(json|model|txt|bpe)|tokenizer\.model\.v\d+\w*|"
    r"special_tokens_map\.json|added_tokens\.json|"
    r"vocab[\w.\-]*\.(json|txt|bpe|jsonl)|merges[\w.\-]*\.txt|[\w.\-]+\.tiktoken|[\w.\-]+\.spm|"
    r"tekken\.json|spiece\.model|spm\.model|sentencepiece[\w.\-]*\.model|"
    r"[\w\-]*(source|target)\.spm|dict\.txt|emoji\.json|normalizer\.json|bpe\.codes|"
    r"chat_template\.(jinja|json)|[\w\-]*\.jinja|additional_chat_templates/[\w.\-]+\.jinja|"
    r"(pre|image_)?processor_config\.json|preprocessor_config\.json|"
    r"(video|audio|image|feature)_\w*(processor|preprocessor|extractor)\w*\.json|"
    r"generation_config\.json|"
    r"modules\.json|config_sentence_transformers\.json|sentence_[\w\-]+_config\.json|"
    r"\d+_\w+/(config\.json|model\.safetensors)|"
    r"(LICENSE|LICENCE|NOTICE|COPYING|USE_POLICY|USAGE_POLICY)[\w.\- ]*",
    re.IGNORECASE,
)

_FOLDER = re.compile(r"additional_chat_templates|\d+_\w+")

# Keys of config.json that mean the same for every model, and what their values are.
_TYPES: dict[str, tuple[type, str]] = {
    "architectures": (list, "a list of class names"),
    "auto_map": (dict, "an object"),
    "dtype": (str, "the name of a type"),
    "layer_types": (list, "a list of names"),
    "model_type": (str, "a name"),
    "quantization_config": (dict, "an object"),
    "text_config": (dict, "an object"),
    "tie_word_embeddings": (bool, "true or false"),
    "torch_dtype": (str, "the name of a type"),
    "vision_config": (dict, "an object"),
}


def is_companion(name: str, trust_remote_code: bool = False) -> bool:
    """True for a file, named relative to the checkpoint, that the output should have as it is."""
    if name.endswith(".py") and "/" not in name:
        return trust_remote_code
    return _COMPANION.fullmatch(name) is not None


def companion_files(folder: Path, trust_remote_code: bool = False) -> dict[str, Path]:
    """Files to be copied byte for byte, by their name in the output.

    Raises:
        SourceError: one of them is a Git LFS pointer, cannot be read, or is a link that leads out
            of the folder: what is copied may be published.
    """
    found = {
        name: folder / name
        for name in sorted(_names(folder))
        if is_companion(name, trust_remote_code) and (folder / name).is_file()
    }
    for path in found.values():
        check_companion(folder, path)
    return found


def check_companion(folder: Path, path: Path) -> None:
    """Raise SourceError for a Git LFS pointer, and for a link that leads out of the folder."""
    if not stays_inside(folder, path):
        raise SourceError(
            f"{path}: a link to {os.path.realpath(path)}, which is outside of the folder, so it is "
            "not copied into the output; put the file itself there if it belongs to the model"
        )
    refuse_lfs_pointer(path)


def _names(folder: Path) -> Iterable[str]:
    yield from (entry.name for entry in folder.iterdir())
    for inner in sorted(folder.iterdir()):
        if _FOLDER.fullmatch(inner.name) and inner.is_dir():
            yield from (f"{inner.name}/{entry.name}" for entry in inner.iterdir())


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint.

    Raises:
        SourceError: it is missing, not a JSON object, or does not name the model as it should.
    """
    path = folder / "config.json"
    if not path.exists():
        if (folder / "params.json").exists():
            raise SourceError(
                f"{folder}: has params.json but no config.json, so it is in its authors' own "
                "layout; use the Hugging Face version of the model"
            )
        raise SourceError(
            f"{path}: no such file; it says which model the weights belong to. Download it, or "
            "save the model with save_pretrained"
        )
    config = read_json_object(path)
    model_type = config.get("model_type")
    if "model_class" in config and model_type is None:
        raise SourceError(
            f"{folder}: a module that torch2mlx compiled to MLX (model.py), not a checkpoint; name "
            "what it was made from"
        )
    if not isinstance(model_type, str) or not model_type:
        raise SourceError(
            f"{path}: expected a 'model_type' such as \"llama\", found {model_type!r}; it "
            "says which architecture the weights belong to"
        )
    _check_types(path, config)
    for part in ("text_config", "vision_config"):
        if isinstance(config.get(part), dict):
            _check_types(path, config[part], f"{part}.")
    return config


def peek_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder as it is; {} where there is none that can be read.

    For a first look at what a path is: opening the checkpoint tells what is wrong with it.
    """
    path = folder / "config.json"
    try:
        return read_json_object(path) if path.is_file() else {}
    except SourceError:
        return {}


def _check_types(path: Path, config: dict[str, Any], prefix: str = "") -> None:
    """Refuse a value of another type than every library expects for its key."""
    for key, (kind, words) in _TYPES.items():
        value = config.get(key)
        fits = value is None or isinstance(value, kind)
        if fits and isinstance(value, list):
            fits = all(isinstance(item, str) for item in value)
        if not fits:
            raise SourceError(
                f"{path}: expected {prefix}{key} to be {words}, found {str(value)[:80]!a}; correct "
                "or remove it"
            )


def read_generation_config(folder: Path) -> dict[str, Any]:
    """generation_config.json of a checkpoint, {} where there is none."""
    path = folder / "generation_config.json"
    return read_json_object(path) if path.exists() else {}
