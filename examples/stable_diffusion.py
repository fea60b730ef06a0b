"""Stable Diffusion converted to MLX, and the same picture from both.

    python examples/stable_diffusion.py                       # a tiny one with random weights
    python examples/stable_diffusion.py --pipeline FOLDER --out sd-mlx --prompt "a red cat"

FOLDER is what diffusers' `save_pretrained` writes.  The text encoder, the U-Net and the decoder
become folders of MLX code; stable_diffusion_mlx.py draws with them, without PyTorch.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import stable_diffusion_mlx as sd
import torch2mlx
from side_by_side import IMAGES, picture

__all__ = ["convert", "main", "tiny_pipeline"]

LIMIT = 1e-3
"""Relative L2 error of the picture: the steps of the loop add up the parts' 1e-4."""


class TextEncoder(nn.Module):
    """The part of the text encoder that the U-Net reads."""

    def __init__(self, text_encoder: nn.Module) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Tokens `[batch, length]` to `[batch, length, width]`."""
        return self.text_encoder(input_ids=ids).last_hidden_state


class Denoiser(nn.Module):
    """The U-Net, its result out of its wrapping."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, latents: torch.Tensor, steps: torch.Tensor, text: torch.Tensor
    ) -> torch.Tensor:
        """What the noise in the latents is, of their shape."""
        return self.unet(latents, steps, text).sample


class Decoder(nn.Module):
    """Latents as the U-Net has them to pixels in -1..1."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents `[batch, channels, height, width]` to pixels `[batch, 3, 8 height, 8 width]`."""
        return self.vae.decode(latents / self.vae.config.scaling_factor).sample


class Encoder(nn.Module):
    """Pixels to the mean of their latents; drawing from the distribution is left to the caller."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """The inverse of the decoder."""
        return self.vae.encode(pixels).latent_dist.mean * self.vae.config.scaling_factor


def tiny_pipeline() -> Any:
    """Stable Diffusion's parts with few channels and random weights."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    torch.manual_seed(0)
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=24
    )
    text = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=24,
        bos_token_id=len(tokens) - 2,
        eos_token_id=len(tokens) - 1,
        pad_token_id=len(tokens) - 1,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=2,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = AutoencoderKL(
        sample_size=64,
        block_out_channels=(32, 32, 64),
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def convert(pipeline: Any, folder: Path) -> None:
    """Write the parts of a pipeline as folders of MLX code, each compared with PyTorch.

    The size of the picture is the pipeline's; the number of pictures is dynamic.
    """
    folder.mkdir(parents=True)
    size, channels = pipeline.unet.config.sample_size, pipeline.unet.config.in_channels
    tokens = pipeline.tokenizer.model_max_length
    # Diffusers goes another way from 64 pictures on, to the same result.
    batch = torch.export.Dim("batch", max=63)
    prompts = pipeline.tokenizer(
        ["", "a picture of a red cat"],
        padding="max_length",
        max_length=tokens,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    latents = torch.randn(2, channels, size, size)
    text = torch.randn(2, tokens, pipeline.unet.config.cross_attention_dim)
    scale = pipeline.vae_scale_factor
    pixels = torch.randn(2, 3, size * scale, size * scale)
    parts = {
        "text_encoder": (TextEncoder(pipeline.text_encoder), (prompts,)),
        "unet": (Denoiser(pipeline.unet), (latents, torch.tensor([3, 500]), text)),
        "vae_decoder": (Decoder(pipeline.vae), (latents,)),
        "vae_encoder": (Encoder(pipeline.vae), (pixels,)),
    }
    for name, (module, example) in parts.items():
        made = torch2mlx.convert(
            module.eval(),
            folder / name,
            example_inputs=example,
            dynamic_shapes=tuple({0: batch} for _ in example),
        )
        print(f"{name:13s} {made.operators:5d} operators, relative L2 error {made.error:.1e}")
    pipeline.tokenizer.save_pretrained(folder / "tokenizer")
    pipeline.scheduler.save_pretrained(folder / "scheduler")
    about = {
        "tokens": tokens,
        "pad_token": pipeline.tokenizer.pad_token,
        "latent_shape": [1, channels, size, size],
    }
    (folder / "pipeline.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def read_pipeline(source: Path | None) -> Any:
    """A pipeline in float32 that steps by DDIM."""
    if source is None:
        pipeline = tiny_pipeline()
    else:
        from diffusers import DDIMScheduler, StableDiffusionPipeline

        pipeline = StableDiffusionPipeline.from_pretrained(
            source, safety_checker=None, local_files_only=True
        )
        pipeline.scheduler = DDIMScheduler.from_config(
            pipeline.scheduler.config, clip_sample=False, timestep_spacing="leading"
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def main(given: argparse.Namespace) -> float:
    """Convert, draw with both, compare; the relative L2 error of the picture."""
    pipeline = read_pipeline(given.pipeline)
    convert(pipeline, given.out)
    converted = sd.load(given.out)
    start = sd.noise(converted.latent_shape, given.seed)
    with torch.inference_mode():
        expected = pipeline(
            given.prompt,
            latents=torch.from_numpy(start),
            num_inference_steps=given.steps,
            guidance_scale=given.guidance,
            output_type="np",
        ).images
    found = sd.generate(converted, given.prompt, start, given.steps, given.guidance)
    error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    print(f"picture after {given.steps} steps: relative L2 error {error:.1e}, limit {LIMIT:.0e}")
    if not error <= LIMIT:
        sys.exit("error: the pictures differ")
    if given.picture:
        with picture(given.picture, 1, 3, (7.5, 2.8), ["PyTorch", "MLX", "difference"]) as axes:
            images = (expected[0], found[0], np.abs(expected - found)[0])
            for axis, image in zip(axes.flat, images, strict=True):
                axis.imshow(image, vmin=0, vmax=1)
    return error


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", type=Path, help="folder of diffusers; else a tiny random one")
    parser.add_argument("--out", type=Path, help="new folder to keep the converted parts in")
    parser.add_argument("--prompt", default="a picture of a red cat")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, default=IMAGES / "stable_diffusion.png")
    parser.add_argument("--no-picture", dest="picture", action="store_const", const=None)
    return parser


if __name__ == "__main__":
    given = _options().parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        given.out = given.out or Path(scratch) / "stable_diffusion"
        try:
            main(given)
        except torch2mlx.Torch2MLXError as error:
            sys.exit(f"error: {error}")
