"""Speech models of few channels and random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import VitsConfig, VitsModel, VitsTokenizer

__all__ = ["add_vits_tokenizer", "vits"]


def vits(**changes: Any) -> Any:
    """A VITS of 38 tokens whose biases and spline edges are no zeros either."""
    torch.manual_seed(0)
    config = VitsConfig(
        hidden_size=16, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=38,
        flow_size=16, spectrogram_bins=9, upsample_initial_channel=16,
        upsample_rates=[4, 2], upsample_kernel_sizes=[8, 4], resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]], prior_encoder_num_flows=2,
        prior_encoder_num_wavenet_layers=1, posterior_encoder_num_wavenet_layers=2,
        duration_predictor_filter_channels=16, duration_predictor_num_flows=2,
        depth_separable_num_layers=2, **changes,
    )  # fmt: skip
    model = VitsModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model.eval()


def add_vits_tokenizer(folder: Path) -> None:
    """A tokenizer of letters."""
    letters = {c: i for i, c in enumerate("_ abcdefghijklmnopqrstuvwxyz")}
    vocabulary = folder / "letters.json"
    vocabulary.write_text(json.dumps(letters))
    VitsTokenizer(str(vocabulary), pad_token="_", unk_token="_").save_pretrained(folder)
    vocabulary.unlink()
