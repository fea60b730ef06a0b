"""Which checkpoints are compiled as speech, told from config.json without torch."""

from __future__ import annotations

from pathlib import Path

from torch2mlx.errors import SourceError
from torch2mlx.sources.local_files import read_json_object

__all__ = ["SYNTHESIZERS", "is_synthesizer"]

SYNTHESIZERS = {
    "fastspeech2_conformer": "FastSpeech2ConformerModel",
    "fastspeech2_conformer_with_hifigan": "FastSpeech2ConformerWithHifiGan",
    "vits": "VitsModel",
}
"""Value of `model_type` → class of transformers."""


def is_synthesizer(path: Path) -> bool:
    """Whether a path is the folder of such a checkpoint."""
    config = path / "config.json"
    if not config.is_file():
        return False
    try:
        name = read_json_object(config).get("model_type")
    except SourceError:
        return False  # opening the checkpoint will tell
    return isinstance(name, str) and name in SYNTHESIZERS
