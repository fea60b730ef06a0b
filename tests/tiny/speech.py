"""Speech models of few channels and random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    FastSpeech2ConformerConfig,
    FastSpeech2ConformerHifiGanConfig,
    FastSpeech2ConformerModel,
    FastSpeech2ConformerWithHifiGan,
    FastSpeech2ConformerWithHifiGanConfig,
    VitsConfig,
    VitsModel,
    VitsTokenizer,
)

__all__ = ["add_vits_tokenizer", "fastspeech2", "kokoro", "vits"]


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


def fastspeech2(vocoder: bool, **changes: Any) -> Any:
    """A FastSpeech 2 of 30 tokens, some two frames each, alone or with a HiFi-GAN."""
    torch.manual_seed(0)
    layers = {
        "attention_dropout_rate": 0.2, "layers": 1, "activation_type": "silu",
        "concat_after": False, "dropout_rate": 0.2, "kernel_size": 7, "linear_units": 32,
        "normalize_before": True, "num_attention_heads": 2, "positional_dropout_rate": 0.2,
    }  # fmt: skip
    predictors = {
        f"{name}_predictor_{size}": value
        for name in ("duration", "energy", "pitch")
        for size, value in (("channels", 8), ("layers", 1))
    }
    config = FastSpeech2ConformerConfig(
        hidden_size=16, vocab_size=30, num_mel_bins=8, encoder_config=dict(layers),
        decoder_config=dict(layers), encoder_num_attention_heads=2, decoder_num_attention_heads=2,
        encoder_layers=1, decoder_layers=1, speech_decoder_postnet_layers=2,
        speech_decoder_postnet_units=8, **predictors, **changes,
    )  # fmt: skip
    if vocoder:
        sound = FastSpeech2ConformerHifiGanConfig(
            model_in_dim=8, upsample_initial_channel=16, upsample_rates=[2, 2],
            upsample_kernel_sizes=[4, 4], resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1, 3]],
        )  # fmt: skip
        both = FastSpeech2ConformerWithHifiGanConfig(
            model_config=config.to_dict(), vocoder_config=sound.to_dict()
        )
        model: Any = FastSpeech2ConformerWithHifiGan(both)
    else:
        model = FastSpeech2ConformerModel(config)
    durations = getattr(model, "model", model).duration_predictor.linear
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
        durations.bias.fill_(1.2)
        durations.weight.mul_(3)
    return model.eval()


def kokoro(folder: Path) -> None:
    """A Kokoro's release of random weights; the widths that its code fixes make it 238 MB."""
    from torch2mlx.audio.libraries import original_class

    letters = {letter: i + 1 for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    config = {
        "istftnet": {
            "upsample_kernel_sizes": [4, 9], "upsample_rates": [2, 3], "gen_istft_hop_size": 5,
            "gen_istft_n_fft": 20, "resblock_dilation_sizes": [[1, 3, 5]],
            "resblock_kernel_sizes": [3], "upsample_initial_channel": 512,
        },
        "dim_in": 64, "dropout": 0.2, "hidden_dim": 512, "max_conv_dim": 512, "max_dur": 50,
        "multispeaker": True, "n_layer": 1, "n_mels": 80, "n_token": 40, "style_dim": 128,
        "text_encoder_kernel_size": 5, "vocab": letters,
        "plbert": {
            "hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 64,
            "max_position_embeddings": 64, "num_hidden_layers": 2, "dropout": 0.1,
        },
    }  # fmt: skip
    torch.manual_seed(0)
    empty = folder / "kokoro-v1_0.pth"
    torch.save({}, empty)
    model = original_class()(repo_id="local", config=config, model=str(empty))
    with torch.no_grad():
        model.predictor.duration_proj.linear_layer.bias.fill_(-3.0)  # few frames a phoneme
        model.predictor.F0_proj.bias.fill_(150.0)  # a voice
        for name, parameter in model.named_parameters():
            if name.endswith("ffn.weight"):
                parameter.mul_(30.0)  # where one GELU is not the other
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        if not name.endswith((".norm.weight", ".norm.bias")):
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[f"module.{rest}"] = tensor
    torch.save(parts, empty)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "voices").mkdir()
    torch.save(0.1 * torch.randn(20, 1, 256), folder / "voices" / "af_test.pt")
