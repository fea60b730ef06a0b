"""Sizes of the models in the releases of Stable Diffusion, which single files do not state.

As published in the config.json files of runwayml/stable-diffusion-v1-5,
stabilityai/stable-diffusion-2-1 and stabilityai/stable-diffusion-xl-base-1.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch2mlx.sources.base import TensorInfo

__all__ = ["RELEASES", "Release"]

Model = tuple[str, str, dict[str, Any]]
"""Library, class, and its configuration where that is not the default."""


@dataclass(frozen=True)
class Release:
    """A family of single files.

    Attributes:
        name: for messages.
        pipeline: class of diffusers.
        models: by component.
        shapes: tensors that tell it from the others.
    """

    name: str
    pipeline: str
    models: Mapping[str, Model]
    shapes: Mapping[str, tuple[int, ...]]

    def fits(self, tensors: Mapping[str, TensorInfo]) -> bool:
        """Whether a file with these tensors is of this family."""
        return all(n in tensors and tensors[n].shape == s for n, s in self.shapes.items())


_UNET = "model.diffusion_model."
_FIRST = {f"{_UNET}input_blocks.0.0.weight": (320, 4, 3, 3)}
_CROSS = f"{_UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def _unet(**config: Any) -> Model:
    return "diffusers", "UNet2DConditionModel", config


def _autoencoder(size: int, scale: float) -> Model:
    config = {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "sample_size": size,
        "scaling_factor": scale,
    }
    return "diffusers", "AutoencoderKL", config


def _text(class_name: str, width: int, layers: int, heads: int, **config: Any) -> Model:
    sizes = {
        "model_type": "clip_text_model",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": 49408,
        "max_position_embeddings": 77,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
    }
    return "transformers", class_name, sizes | config


_CLIP_L = _text("CLIPTextModel", 768, 12, 12, hidden_act="quick_gelu", projection_dim=768)
_FOUR_BLOCKS = {
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}

RELEASES = (
    Release(
        "Stable Diffusion 1.x",
        "StableDiffusionPipeline",
        {
            "unet": _unet(
                **_FOUR_BLOCKS, sample_size=64, cross_attention_dim=768, attention_head_dim=8
            ),
            "vae": _autoencoder(512, 0.18215),
            "text_encoder": _CLIP_L,
        },
        {**_FIRST, _CROSS: (320, 768)},
    ),
    Release(
        "Stable Diffusion 2.x",
        "StableDiffusionPipeline",
        {
            "unet": _unet(
                **_FOUR_BLOCKS,
                sample_size=96,
                cross_attention_dim=1024,
                attention_head_dim=[5, 10, 20, 20],
                use_linear_projection=True,
            ),
            "vae": _autoencoder(768, 0.18215),
            "text_encoder": _text(
                "CLIPTextModel", 1024, 23, 16, hidden_act="gelu", projection_dim=512
            ),
        },
        {**_FIRST, _CROSS: (320, 1024)},
    ),
    Release(
        "Stable Diffusion XL",
        "StableDiffusionXLPipeline",
        {
            "unet": _unet(
                sample_size=128,
                block_out_channels=[320, 640, 1280],
                down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                transformer_layers_per_block=[1, 2, 10],
                attention_head_dim=[5, 10, 20],
                cross_attention_dim=2048,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
            ),
            "vae": _autoencoder(1024, 0.13025),
            "text_encoder": _CLIP_L,
            "text_encoder_2": _text(
                "CLIPTextModelWithProjection", 1280, 32, 20, hidden_act="gelu", projection_dim=1280
            ),
        },
        {**_FIRST, f"{_UNET}label_emb.0.0.weight": (1280, 2816)},
    ),
)
