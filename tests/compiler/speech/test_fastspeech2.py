"""FastSpeech 2 as a whole, alone and with its vocoder, compared with its own forward."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from speech import fastspeech2

import torch2mlx

TEXT = torch.tensor([[3, 17, 5, 22, 9, 28, 8, 4, 11, 2, 25], [9, 3, 7, 7, 1, 12, 2, 0, 0, 0, 0]])
CHOICES = {"num_speakers": 3, "num_languages": 2, "speaker_embed_dim": 4, "speaking_speed": 1.4}


@pytest.mark.slow
@pytest.mark.parametrize(("vocoder", "changes"), [(False, {}), (True, CHOICES)])
def test_a_checkpoint_converts_as_a_whole(
    vocoder: bool, changes: dict[str, Any], tmp_path: Path
) -> None:
    model = fastspeech2(vocoder, **changes)
    model.save_pretrained(tmp_path / "source")
    made = torch2mlx.convert(tmp_path / "source", tmp_path / "out").to_dict()
    assert made["error"] <= 1e-4
    assert "19 tokens" in made["cases"]
    given: dict[str, Any] = {"input_ids": TEXT, "attention_mask": (TEXT != 0).long()}
    if changes:
        given |= {"speaker_ids": torch.tensor([2, 0]), "lang_ids": torch.tensor([1, 1])}
        given["speaker_embedding"] = torch.linspace(-1, 2, 8).reshape(2, 4)
    with torch.no_grad():
        expected = model(**given, return_dict=True)
    speak = runpy.run_path(str(tmp_path / "out" / "model.py"))["load"](str(tmp_path / "out"))
    found = speak(**{name: mx.array(value.numpy()) for name, value in given.items()})
    assert ("waveform" in found) == vocoder
    for name, value in found.items():
        np.testing.assert_allclose(np.array(value), expected[name].numpy(), atol=1e-5, rtol=1e-3)
    if changes:
        with pytest.raises(ValueError, match="speaker_ids, lang_ids, speaker_embedding: this mo"):
            speak(mx.array(TEXT.numpy()))
