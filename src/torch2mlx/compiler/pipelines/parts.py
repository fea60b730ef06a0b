"""How the models of a pipeline are called: methods, examples, and which extents are free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torch2mlx.compiler.entry_points import EntryPoint

__all__ = ["PARTS", "Part"]

_TOKENS = 16  # of an example's text, where any number will do
_MOST_PICTURES = 63  # from 64 on diffusers makes tensors contiguous first: another graph


@dataclass(frozen=True)
class Part:
    """A module to compile.

    Attributes:
        module: the model, or a module around it.
        entry_points: its methods with examples.
    """

    module: nn.Module
    entry_points: tuple[EntryPoint, ...]


class Autoencoder(nn.Module):
    """An autoencoder of diffusers as two functions of tensors.

    Args:
        model: with `encode` and `decode`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def encode(self, pixels: Tensor) -> Tensor:
        """The mean of the latents [batch, channels, h, w] of pixels in -1..1 [batch, 3, H, W]."""
        mean: Tensor = self.model.encode(pixels).latent_dist.mean
        return mean

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels of latents as the autoencoder has them (scaling factors are the caller's)."""
        pixels: Tensor = self.model.decode(latents).sample
        return pixels


class TextEncoder(nn.Module):
    """CLIP's text encoder with all that pipelines read of it.

    Args:
        model: with or without a projection.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> dict[str, Any]:
        """By name: `last_hidden_state`, the outputs of all layers, and the pooled text.

        Args:
            input_ids: [batch, tokens].
        """
        output = self.model(input_ids=input_ids, output_hidden_states=True)
        return {name: value for name, value in output.items() if value is not None}


def _batch() -> Any:
    return torch.export.Dim("batch", max=_MOST_PICTURES)


def _forward(model: nn.Module, free: dict[str, dict[int, Any]], **inputs: Any) -> Part:
    """`forward` with keyword arguments; those that `free` does not name have fixed extents."""
    shapes: dict[str, Any] = {n: free.get(n) for n in inputs}
    return Part(model, (EntryPoint("forward", (), inputs, shapes),))


def _size(config: Any) -> tuple[int, int]:
    size = config.sample_size
    return (size[0], size[1]) if isinstance(size, list | tuple) else (size, size)


def _unet(model: Any) -> Part:
    config, batch = model.config, _batch()
    inputs: dict[str, Any] = {
        "sample": torch.randn(2, config.in_channels, *_size(config)),
        "timestep": torch.tensor([7, 500]),
        "encoder_hidden_states": torch.randn(2, _TOKENS, config.cross_attention_dim),
    }
    free: dict[str, Any] = {name: {0: batch} for name in inputs}
    free["encoder_hidden_states"][1] = torch.export.Dim("tokens", min=2, max=4096)
    if config.time_cond_proj_dim:
        inputs["timestep_cond"] = torch.randn(2, config.time_cond_proj_dim)
        free["timestep_cond"] = {0: batch}
    if config.addition_embed_type == "text_time":
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.randn(2, width),
            "time_ids": torch.randint(1, 64, (2, 6)).float(),
        }
        free["added_cond_kwargs"] = {"text_embeds": {0: batch}, "time_ids": {0: batch}}
    return _forward(model, free, **inputs)


def _sd3_transformer(model: Any) -> Part:
    config, batch = model.config, _batch()
    inputs = {
        "hidden_states": torch.randn(2, config.in_channels, *_size(config)),
        "encoder_hidden_states": torch.randn(2, _TOKENS, config.joint_attention_dim),
        "pooled_projections": torch.randn(2, config.pooled_projection_dim),
        "timestep": torch.tensor([7.0, 500.0]),
    }
    free: dict[str, Any] = {name: {0: batch} for name in inputs}
    free["encoder_hidden_states"][1] = torch.export.Dim("tokens", min=2, max=4096)
    return _forward(model, free, **inputs)


def _flux_transformer(model: Any) -> Part:
    config, batch = model.config, _batch()
    patches = torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij"), -1)
    places = torch.cat([torch.zeros(24, 1), patches.reshape(24, 2)], 1)
    inputs: dict[str, Any] = {
        "hidden_states": torch.randn(2, 24, config.in_channels),
        "encoder_hidden_states": torch.randn(2, _TOKENS, config.joint_attention_dim),
        "pooled_projections": torch.randn(2, config.pooled_projection_dim),
        "timestep": torch.tensor([0.1, 0.7]),
        "img_ids": places,
        "txt_ids": torch.zeros(_TOKENS, 3),
    }
    pictures = torch.export.Dim("patches", min=2, max=65536)
    tokens = torch.export.Dim("tokens", min=2, max=4096)
    free: dict[str, Any] = {
        "hidden_states": {0: batch, 1: pictures},
        "encoder_hidden_states": {0: batch, 1: tokens},
        "pooled_projections": {0: batch},
        "timestep": {0: batch},
        "img_ids": {0: pictures},
        "txt_ids": {0: tokens},
    }
    if config.guidance_embeds:
        inputs["guidance"] = torch.tensor([3.5, 4.0])
        free["guidance"] = {0: batch}
    return _forward(model, free, **inputs)


def _autoencoder(model: Any) -> Part:
    config, batch = model.config, _batch()
    height, width = _size(config)
    smaller = 2 ** (len(config.block_out_channels) - 1)
    latents = torch.randn(2, config.latent_channels, height // smaller, width // smaller)
    pixels = torch.randn(2, config.in_channels, height, width)
    points = (
        EntryPoint("encode", (), {"pixels": pixels}, {"pixels": {0: batch}}),
        EntryPoint("decode", (), {"latents": latents}, {"latents": {0: batch}}),
    )
    return Part(Autoencoder(model), points)


def _clip_text(model: Any) -> Part:
    config = model.config
    ids = torch.randint(1, config.vocab_size - 2, (2, config.max_position_embeddings))
    ids[0, 5:] = ids[1, 9:] = config.eos_token_id  # where the pooled output is taken
    free = {"input_ids": {0: torch.export.Dim("batch", max=4096)}}
    return _forward(TextEncoder(model), free, input_ids=ids)


def _t5_encoder(model: Any) -> Part:
    ids = torch.randint(3, model.config.vocab_size, (2, _TOKENS))
    auto = torch.export.Dim.AUTO
    return _forward(model, {"input_ids": {0: auto, 1: auto}}, input_ids=ids)


PARTS: dict[str, Callable[[Any], Part]] = {
    "AutoencoderKL": _autoencoder,
    "CLIPTextModel": _clip_text,
    "CLIPTextModelWithProjection": _clip_text,
    "FluxTransformer2DModel": _flux_transformer,
    "SD3Transformer2DModel": _sd3_transformer,
    "T5EncoderModel": _t5_encoder,
    "UNet2DConditionModel": _unet,
}
"""By class name, as model_index.json has it."""
