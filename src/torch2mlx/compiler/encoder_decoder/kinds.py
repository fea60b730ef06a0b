"""Which checkpoints are compiled as encoder-decoders, told without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch2mlx.sources.companions import peek_config
from torch2mlx.sources.original.whisper import is_whisper

__all__ = ["GENERATES", "is_encoder_decoder_checkpoint", "is_encoder_decoder_config"]

GENERATES = "ForConditionalGeneration"
"""How the names of classes end that write text of text, pictures or sound."""


def is_encoder_decoder_checkpoint(path: Path) -> bool:
    """Whether a path is the folder of an encoder-decoder of transformers, or OpenAI's Whisper."""
    return is_whisper(path) or is_encoder_decoder_config(peek_config(path))


def is_encoder_decoder_config(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of an encoder-decoder."""
    names = config.get("architectures")
    names = names if isinstance(names, list) else []
    generates = any(str(n).endswith(GENERATES) for n in names)
    # Others with such a name are language models that also take images.
    return generates and config.get("is_encoder_decoder") is True
