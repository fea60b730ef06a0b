"""Transformers' Whisper folders in mlx-audio, which needs no conversion of them."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.skipif(
    find_spec("mlx_audio") is None, reason="needs mlx-audio, of the extra `audio`"
)


def test_mlx_audio_takes_the_folder_as_it_is(tmp_path: Path) -> None:
    import mlx.core as mx
    from mlx_audio.stt.models.whisper.whisper import Model, ModelDimensions
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sides: dict[str, Any] = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {"layers": 2, "attention_heads": 4, "ffn_dim": 128}.items()
    }
    config = WhisperConfig(
        **sides, d_model=32, vocab_size=64, num_mel_bins=8, max_source_positions=20,
        max_target_positions=32, decoder_start_token_id=1, bos_token_id=0, eos_token_id=2,
        pad_token_id=0, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "encoder.embed_positions" not in name:  # the port computes them
                parameter.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path)
    sound, tokens = torch.randn(2, 8, 40), torch.tensor([[1, 5, 7], [2, 9, 3]])
    with torch.no_grad():
        expected = model(input_features=sound, decoder_input_ids=tokens).logits.numpy()

    # `mlx_audio.stt.load` builds it in float16.
    dimensions = ModelDimensions.from_dict(json.loads((tmp_path / "config.json").read_text()))
    port = Model(dimensions, mx.float32)
    weights = port.sanitize(mx.load(str(tmp_path / "model.safetensors")))
    port.load_weights(list(weights.items()), strict=True)
    found = np.array(port(mx.array(sound.transpose(1, 2).numpy()), mx.array(tokens.numpy())))
    assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)
