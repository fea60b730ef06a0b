"""A speech model of transformers with all that `convert` needs to know of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch2mlx.compiler.pretrained.loading import load_pretrained
from torch2mlx.compiler.speech.fastspeech2 import fastspeech2_parts
from torch2mlx.compiler.speech.kinds import SYNTHESIZERS
from torch2mlx.compiler.speech.parts import SpeechParts
from torch2mlx.compiler.speech.vits import vits_parts
from torch2mlx.errors import Torch2MLXError, UnsupportedError
from torch2mlx.sources.companions import read_config

__all__ = ["is_speech_model", "load_speech_model", "parts_of"]

_PARTS: dict[str, Callable[[Any], SpeechParts]] = {
    "FastSpeech2ConformerModel": fastspeech2_parts,
    "FastSpeech2ConformerWithHifiGan": fastspeech2_parts,
    "VitsModel": vits_parts,
}
"""By class name."""


def is_speech_model(model: Any) -> bool:
    """Whether a module is of a class that is known here."""
    return type(model).__name__ in _PARTS and type(model).__module__.startswith("transformers.")


def parts_of(model: Any) -> SpeechParts:
    """How a speech model is compiled.

    Args:
        model: one that is known here, in float32.

    Raises:
        UnsupportedError: PyTorch itself does not run it.
    """
    name = type(model).__name__
    try:
        return _PARTS[name](model.eval())
    except Torch2MLXError:
        raise
    except Exception as error:  # whatever settings that do not fit one another provoke
        raise UnsupportedError(
            f"{name}: PyTorch itself does not turn a text into sound with these weights and "
            f"config.json: {type(error).__name__}: {str(error)[:300]}"
        ) from error


def load_speech_model(folder: Path) -> Any:
    """The float32 model of a checkpoint's folder, its weights in memory.

    Raises:
        SourceError: transformers cannot load it, or weights are missing.
    """
    class_name = SYNTHESIZERS[read_config(folder)["model_type"]]
    return load_pretrained(folder, class_name).model
