"""Which checkpoints are compiled as encoder-decoders, told without torch."""

from __future__ import annotations

from pathlib import Path

from torch2mlx.errors import SourceError
from torch2mlx.sources.local_files import read_json_object
from torch2mlx.sources.original.whisper import is_whisper

__all__ = ["is_encoder_decoder_checkpoint"]


def is_encoder_decoder_checkpoint(path: Path) -> bool:
    """Whether a path is the folder of an encoder-decoder of transformers, or OpenAI's Whisper."""
    if is_whisper(path):
        return True
    config = path / "config.json"
    if not config.is_file():
        return False
    try:
        found = read_json_object(config)
    except SourceError:
        return False  # opening the checkpoint will tell
    names = found.get("architectures")
    names = names if isinstance(names, list) else []
    generates = any(str(n).endswith("ForConditionalGeneration") for n in names)
    # Others with such a name are language models that also take images.
    return generates and found.get("is_encoder_decoder") is True
