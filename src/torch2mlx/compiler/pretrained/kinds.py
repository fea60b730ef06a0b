"""Which checkpoints are compiled as the class that their config.json names, told without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch2mlx.architectures.catalog import port_name
from torch2mlx.sources.companions import peek_config

__all__ = ["is_class_folder", "is_pretrained_config", "is_pretrained_model"]

# Language models have ports, which keep a cache; models that also write text about pictures or
# sound need one for that.
_WRITES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_OF_A_LANGUAGE_MODEL = (
    "ForMultipleChoice",
    "ForQuestionAnswering",
    "ForSequenceClassification",
    "ForTokenClassification",
)


def is_pretrained_model(path: Path) -> bool:
    """Whether a path is the folder of a model of transformers that no port is for."""
    return is_pretrained_config(peek_config(path))


def is_pretrained_config(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of such a model.

    Where mlx-lm has a port of the model type, these are the classifiers alone.
    """
    name = _class_name(config)
    if name.endswith(_WRITES):
        return False
    if not name.endswith(_OF_A_LANGUAGE_MODEL) and port_name(config) is not None:
        return False
    return _is_loadable(config)


def is_class_folder(path: Path) -> bool:
    """Whether a path is the folder of any class of transformers: what an example is for."""
    return _is_loadable(peek_config(path))


def _is_loadable(config: Mapping[str, Any]) -> bool:
    name = _class_name(config)
    if not name or "quantization_config" in config:
        return False
    import transformers

    return name in dir(transformers)


def _class_name(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    return name if isinstance(name, str) else ""
