"""Which checkpoints are compiled as speech, told from config.json without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch2mlx.sources.companions import peek_config

__all__ = ["SYNTHESIZERS", "is_synthesizer", "is_synthesizer_config"]

SYNTHESIZERS = {
    "fastspeech2_conformer": "FastSpeech2ConformerModel",
    "fastspeech2_conformer_with_hifigan": "FastSpeech2ConformerWithHifiGan",
    "vits": "VitsModel",
}
"""Value of `model_type` → class of transformers."""


def is_synthesizer(path: Path) -> bool:
    """Whether a path is the folder of such a checkpoint."""
    return is_synthesizer_config(peek_config(path))


def is_synthesizer_config(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of such a checkpoint."""
    name = config.get("model_type")
    return isinstance(name, str) and name in SYNTHESIZERS
