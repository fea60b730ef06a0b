"""Models of diffusers: tiny, with random weights, each converted and compared with PyTorch."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, randn, tensor

import torch2mlx
from torch2mlx.errors import CompileError

diffusers = pytest.importorskip("diffusers", reason="needs diffusers, of the extra `test`")

BATCH = torch.export.Dim("batch", max=63)
"""From 64 on diffusers makes tensors contiguous first, which export sees as another way."""

Case = tuple[nn.Module, dict[str, Any], tuple[str, ...]]
"""A module, its arguments, and the names of those that have no batch."""

UNET = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "norm_num_groups": 8,
    "attention_head_dim": 8,
}
CONDITIONED = {
    **UNET,
    "cross_attention_dim": 16,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
AUTOENCODER = {
    "block_out_channels": (16, 32),
    "norm_num_groups": 8,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
CASES: dict[str, Callable[[], Case]] = {}


def case(make: Callable[[], Case]) -> Callable[[], Case]:
    CASES[make.__name__] = make
    return make


def image(channels: int = 4, size: int = 8) -> torch.Tensor:
    return randn(2, channels, size, size)


def text(width: int = 16, length: int = 5) -> torch.Tensor:
    return randn(2, length, width)


class Encode(nn.Module):
    """The mean of the latents; drawing from their distribution is left to the caller."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.vae.encode(pixels).latent_dist.mean


class Decode(nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(latents).sample


@case
def unet_2d_condition() -> Case:
    module = diffusers.UNet2DConditionModel(**CONDITIONED)
    given = {"sample": image(), "timestep": tensor(7), "encoder_hidden_states": text()}
    return module, given, ("timestep",)


@case
def unet_of_sdxl() -> Case:
    module = diffusers.UNet2DConditionModel(
        **{**CONDITIONED, "attention_head_dim": (2, 4)},
        layers_per_block=1,
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64,
    )
    added = {"text_embeds": randn(2, 16), "time_ids": torch.randint(9, (2, 6))}
    given = {
        "sample": image(),
        "timestep": tensor([7, 9]),
        "encoder_hidden_states": text(),
        "added_cond_kwargs": added,
    }
    return module, given, ()


@case
def unet_2d() -> Case:
    module = diffusers.UNet2DModel(
        **UNET,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return module, {"sample": image(3), "timestep": tensor(7)}, ("timestep",)


@case
def unet_3d_condition() -> Case:
    module = diffusers.UNet3DConditionModel(
        **{
            **CONDITIONED,
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        },
        layers_per_block=1,
    )
    given = {
        "sample": randn(1, 4, 2, 8, 8),
        "timestep": tensor(3),
        "encoder_hidden_states": randn(1, 4, 16),
    }
    return module, given, tuple(given)


@case
def controlnet() -> Case:
    module = diffusers.ControlNetModel(
        **{k: v for k, v in CONDITIONED.items() if k not in ("sample_size", "up_block_types")},
        layers_per_block=1,
        conditioning_embedding_out_channels=(8, 16),
    )
    for parameter in module.parameters():
        if not parameter.any():  # it starts as zeros, which would hide all differences
            nn.init.normal_(parameter, std=0.1)
    given = {
        "sample": image(),
        "timestep": tensor(7),
        "encoder_hidden_states": text(),
        "controlnet_cond": image(3, 16),
    }
    return module, given, ("timestep",)


@case
def autoencoder_kl_encode() -> Case:
    return Encode(diffusers.AutoencoderKL(**AUTOENCODER)), {"pixels": image(3, 16)}, ()


@case
def autoencoder_kl_decode() -> Case:
    return Decode(diffusers.AutoencoderKL(**AUTOENCODER)), {"latents": image()}, ()


@case
def vq_model() -> Case:
    module = diffusers.VQModel(**AUTOENCODER, num_vq_embeddings=16)
    return module, {"sample": image(3, 16)}, ()


@case
def autoencoder_tiny() -> Case:
    module = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 2),
        num_decoder_blocks=(2, 1),
    )
    return module, {"sample": image(3, 16)}, ()


@case
def clip_text() -> Case:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=12,
        bos_token_id=98,
        eos_token_id=99,
        pad_token_id=99,
    )
    return CLIPTextModel(config), {"input_ids": torch.randint(99, (2, 12))}, ()


@case
def dit() -> Case:
    module = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        norm_num_groups=8,
    )
    given = {
        "hidden_states": image(),
        "timestep": tensor([3, 9]),
        "class_labels": tensor([5, 2]),
    }
    return module, given, ()


@case
def flux() -> Case:
    module = diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    given = {
        "hidden_states": randn(2, 16, 4),
        "encoder_hidden_states": text(32),
        "pooled_projections": randn(2, 32),
        "timestep": tensor([0.3, 0.9]),
        "img_ids": torch.cartesian_prod(tensor([0.0]), torch.arange(4.0), torch.arange(4.0)),
        "txt_ids": torch.zeros(5, 3),
    }
    return module, given, ("img_ids", "txt_ids")


@case
def sd3() -> Case:
    module = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    given = {
        "hidden_states": image(),
        "encoder_hidden_states": text(32),
        "pooled_projections": randn(2, 64),
        "timestep": tensor([3, 9]),
    }
    return module, given, ()


@case
def sana() -> Case:
    module = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=32,
        sample_size=8,
    )
    given = {
        "hidden_states": image(),
        "encoder_hidden_states": text(32),
        "timestep": tensor([3, 9]),
    }
    return module, given, ()


@case
def wan() -> Case:
    module = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=64,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        rope_max_seq_len=32,
    )
    given = {
        "hidden_states": randn(2, 4, 2, 8, 8),
        "timestep": tensor([3, 9]),
        "encoder_hidden_states": text(),
    }
    return module, given, ()


@case
def cogvideox() -> Case:
    module = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=16,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=5,
        max_text_seq_length=5,
    )
    given = {
        "hidden_states": randn(2, 2, 4, 8, 8),
        "encoder_hidden_states": text(),
        "timestep": tensor([3, 9]),
    }
    return module, given, ()


@case
def ltx_video() -> Case:
    module = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=16,
    )
    given = {
        "hidden_states": randn(2, 32, 8),
        "encoder_hidden_states": text(),
        "timestep": tensor([3.0, 9.0]),
        "encoder_attention_mask": tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
        "num_frames": 2,
        "height": 4,
        "width": 4,
    }
    return module, given, tuple(given)


def convert(name: str, folder: Path) -> tuple[Any, str]:
    torch.manual_seed(0)
    module, arguments, fixed = CASES[name]()

    def dynamic(value: Any) -> Any:
        return {k: dynamic(v) for k, v in value.items()} if isinstance(value, dict) else {0: BATCH}

    shapes = {k: None if k in fixed else dynamic(v) for k, v in arguments.items()}
    made = torch2mlx.convert(module.eval(), folder, example_kwargs=arguments, dynamic_shapes=shapes)
    # The example, fresh values, and another size of the batch where there is one.
    assert len(made.cases) >= (2 if len(fixed) == len(arguments) else 3), made.cases
    return made, (folder / "model.py").read_text()


FAST = ("autoencoder_kl_decode", "clip_text")


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_model_agrees_with_pytorch(name: str, tmp_path: Path) -> None:
    made, _ = convert(name, tmp_path / "out")
    assert 0 < made.error <= 1e-4  # zero: compared with itself


@pytest.mark.slow
def test_unet_moves_channels_at_its_borders_only(tmp_path: Path) -> None:
    _, source = convert("unet_2d_condition", tmp_path / "out")
    assert re.findall(r"\.transpose\(([\d, ]*)\)", source) == ["0, 2, 3, 1", "0, 3, 1, 2"]
    # The other exchanges of axes are those of attention's heads: query, key, value, result.
    assert source.count(".swapaxes(") == 4 * source.count("mx.fast.scaled_dot_product_attention")
    assert "moveaxis" not in source


def test_an_unlimited_batch_is_refused_with_the_limit() -> None:
    module = Decode(diffusers.AutoencoderKL(**AUTOENCODER)).eval()
    with pytest.raises(CompileError, match=r"batch = Dim\('batch', max=63\)"):
        torch2mlx.convert(
            module,
            "out",
            example_inputs=(image(),),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
