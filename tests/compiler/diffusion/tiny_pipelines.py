"""Pipelines of diffusers with few channels and random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["PIPELINES"]

_TOKENS = {
    "vocab_size": 99, "max_position_embeddings": 20, "bos_token_id": 97, "eos_token_id": 98,
    "pad_token_id": 98, "num_attention_heads": 4, "num_hidden_layers": 2,
}  # fmt: skip
_UNET = {
    "sample_size": 8, "block_out_channels": (32, 64), "attention_head_dim": 8,
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip


def _autoencoder(**options: Any) -> Any:
    from diffusers import AutoencoderKL

    given: dict[str, Any] = {
        "sample_size": 16, "block_out_channels": (32, 32), "latent_channels": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2, "layers_per_block": 1,
    }  # fmt: skip
    return AutoencoderKL(**{**given, **options})


def _clip(width: int, class_name: str = "CLIPTextModel") -> Any:
    import transformers

    config = transformers.CLIPTextConfig(
        hidden_size=width, intermediate_size=2 * width, projection_dim=width, **_TOKENS
    )
    return getattr(transformers, class_name)(config)


def _t5(width: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(d_model=width, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=99)
    return T5EncoderModel(config)


def stable_diffusion(**unet: Any) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    return StableDiffusionPipeline(
        vae=_autoencoder(),
        text_encoder=_clip(32),
        tokenizer=None,
        unet=UNet2DConditionModel(**{**_UNET, **unet}, cross_attention_dim=32),
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_2() -> Any:
    return stable_diffusion(attention_head_dim=(2, 4), use_linear_projection=True)


def stable_diffusion_xl() -> Any:
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        **{**_UNET, "attention_head_dim": (2, 4)},
        cross_attention_dim=96,
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=112,
    )
    return StableDiffusionXLPipeline(
        vae=_autoencoder(),
        text_encoder=_clip(32),
        text_encoder_2=_clip(64, "CLIPTextModelWithProjection"),
        tokenizer=None,
        tokenizer_2=None,
        unet=unet,
        scheduler=DDIMScheduler(),
    )


def stable_diffusion_3() -> Any:
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=8, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=96, caption_projection_dim=32,
        pooled_projection_dim=96, out_channels=8, pos_embed_max_size=12,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_autoencoder(latent_channels=8, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip(32, "CLIPTextModelWithProjection"),
        tokenizer=None,
        text_encoder_2=_clip(64, "CLIPTextModelWithProjection"),
        tokenizer_2=None,
        text_encoder_3=_t5(96),
        tokenizer_3=None,
    )


def flux() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_autoencoder(use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip(32),
        tokenizer=None,
        text_encoder_2=_t5(32),
        tokenizer_2=None,
        transformer=transformer,
    )


PIPELINES: dict[str, Callable[[], Any]] = {
    "Stable Diffusion": stable_diffusion,
    "Stable Diffusion 2": stable_diffusion_2,
    "Stable Diffusion XL": stable_diffusion_xl,
    "Stable Diffusion 3": stable_diffusion_3,
    "Flux": flux,
}
