"""Tiny models of well-known families beyond language models, as compiled modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import torch2mlx

pytestmark = pytest.mark.slow

_TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": 99, "max_position_embeddings": 40,
}  # fmt: skip
_IMAGE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip


def _ids(*shape: int) -> torch.Tensor:
    return torch.randint(3, 90, shape, generator=torch.Generator().manual_seed(0))


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def bert() -> tuple[Any, dict[str, Any]]:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(**_TEXT)), {"input_ids": _ids(2, 9)}


def t5() -> tuple[Any, dict[str, Any]]:
    from transformers import T5Config, T5Model

    config = T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=99)
    config.use_cache = False
    return T5Model(config), {"input_ids": _ids(2, 9), "decoder_input_ids": _ids(2, 5)}


def clip() -> tuple[Any, dict[str, Any]]:
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(text_config=_TEXT, vision_config=_IMAGE, projection_dim=16)
    return CLIPModel(config), {"input_ids": _ids(2, 9), "pixel_values": _noise(2, 3, 32, 32)}


def siglip() -> tuple[Any, dict[str, Any]]:
    from transformers import SiglipConfig, SiglipModel

    config = SiglipConfig(text_config=_TEXT, vision_config=_IMAGE)
    return SiglipModel(config), {"input_ids": _ids(2, 9), "pixel_values": _noise(2, 3, 32, 32)}


def whisper() -> tuple[Any, dict[str, Any]]:
    from transformers import WhisperConfig, WhisperModel

    config = WhisperConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=99,
        num_mel_bins=16, max_source_positions=20, max_target_positions=20, use_cache=False,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    inputs = {"input_features": _noise(2, 16, 40), "decoder_input_ids": _ids(2, 5)}
    return WhisperModel(config), inputs


class Codec(torch.nn.Module):
    """EnCodec from sound to codes and back."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, sound: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes = self.model.encode(sound, bandwidth=24.0).audio_codes
        return codes, self.model.decode(codes, [None]).audio_values


def encodec() -> tuple[Any, dict[str, Any]]:
    from transformers import EncodecConfig, EncodecModel

    config = EncodecConfig(
        num_filters=4, hidden_size=16, codebook_size=32, codebook_dim=16,
        upsampling_ratios=[4, 2], num_lstm_layers=2,
    )  # fmt: skip
    return Codec(EncodecModel(config)), {"sound": _noise(2, 1, 160)}


def sam() -> tuple[Any, dict[str, Any]]:
    from transformers import SamConfig, SamModel

    image = {"image_size": 32, "patch_size": 8}
    vision = {
        **image, "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2,
        "num_attention_heads": 4, "mlp_dim": 64, "window_size": 2, "global_attn_indexes": [1],
        "num_pos_feats": 8,
    }  # fmt: skip
    masks = {
        "hidden_size": 16, "mlp_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "iou_head_hidden_dim": 16,
    }  # fmt: skip
    prompts = {**image, "hidden_size": 16, "mask_input_channels": 4}
    config = SamConfig(
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=masks
    )
    inputs = {
        "pixel_values": _noise(1, 3, 32, 32),
        "input_points": torch.tensor([[[[5.0, 9.0], [20.0, 11.0]]]]),
        "input_labels": torch.ones(1, 1, 2, dtype=torch.long),
    }
    return SamModel(config), inputs


def musicgen() -> tuple[Any, dict[str, Any]]:
    from transformers import MusicgenConfig, MusicgenForConditionalGeneration

    decoder = {
        "vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "ffn_dim": 64, "num_codebooks": 4, "max_position_embeddings": 64, "pad_token_id": 32,
        "bos_token_id": 32,
    }  # fmt: skip
    text = {
        "model_type": "t5", "d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4,
        "vocab_size": 99,
    }  # fmt: skip
    sound = {
        "model_type": "encodec", "num_filters": 4, "hidden_size": 16, "codebook_size": 32,
        "codebook_dim": 16, "upsampling_ratios": [4, 2],
    }  # fmt: skip
    config = MusicgenConfig(text_encoder=text, audio_encoder=sound, decoder=decoder)
    codes = torch.randint(0, 32, (8, 5), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": _ids(2, 7), "decoder_input_ids": codes, "use_cache": False}
    return MusicgenForConditionalGeneration(config), inputs


def flux() -> tuple[Any, dict[str, Any]]:
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    inputs = {
        "hidden_states": _noise(1, 16, 4), "encoder_hidden_states": _noise(1, 6, 32),
        "pooled_projections": _noise(1, 32), "timestep": torch.tensor([0.5]),
        "img_ids": _noise(16, 3), "txt_ids": _noise(6, 3), "return_dict": False,
    }  # fmt: skip
    return model, inputs


FAMILIES: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "BERT": bert,
    "T5, encoder and decoder": t5,
    "CLIP": clip,
    "SigLIP": siglip,
    "Whisper, encoder and decoder": whisper,
    "SAM, from pixels and points to masks": sam,
    "EnCodec, from sound to codes and back": encodec,
    "MusicGen, text encoder and decoder": musicgen,
    "Flux's transformer": flux,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_compiles_and_equals_pytorch(name: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    model, inputs = FAMILIES[name]()
    result = torch2mlx.convert(model.eval(), tmp_path / "out", example_kwargs=inputs)
    found = result.to_dict()
    assert found["error"] <= 1e-4
    assert tuple(found["cases"]) == ("example", "fresh values")
