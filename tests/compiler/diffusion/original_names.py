"""Weights of diffusers' modules under the names of their authors, as single files have them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

__all__ = ["ORIGINAL"]

State = dict[str, torch.Tensor]

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
AROUND = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2", "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip


def ldm_unet(model: Any) -> State:
    """The U-Net with the names of latent-diffusion's `openaimodel.UNetModel`."""
    layers = model.config.layers_per_block
    state = {}
    for name, tensor in model.state_dict().items():
        found = re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\.", name)
        moved = re.match(r"(down|up)_blocks\.(\d)\.\w+samplers\.0\.conv\.", name)
        start = next((s for s in AROUND if name.startswith(f"{s}.")), None)
        if found:
            side, block, kind, number = found[1], int(found[2]), found[3], int(found[4])
            at = block * (layers + 1) + number + (1 if side == "down" else 0)
            place = "input_blocks" if side == "down" else "output_blocks"
            new = f"{place}.{at}.{int(kind == 'attentions')}.{name[found.end() :]}"
        elif moved and moved[1] == "down":
            at = (int(moved[2]) + 1) * (layers + 1)
            new = f"input_blocks.{at}.0.op.{name[moved.end() :]}"
        elif moved:
            block = int(moved[2])
            attends = hasattr(model.up_blocks[block], "attentions")
            at = block * (layers + 1) + layers
            new = f"output_blocks.{at}.{2 if attends else 1}.conv.{name[moved.end() :]}"
        else:
            assert start is not None, name
            new = name.replace(start, AROUND[start], 1)
        if "resnets" in name:
            stem, part, leaf = new.rsplit(".", 2)
            new = f"{stem}.{RESNET[part]}.{leaf}"
        state[f"model.diffusion_model.{new}"] = tensor
    return state


def ldm_autoencoder(model: Any) -> State:
    """The autoencoder with the names of latent-diffusion's `AutoencoderKL`."""
    blocks = len(model.config.block_out_channels)
    state = {}
    for name, tensor in model.state_dict().items():
        new = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        new = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", new)
        new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", new)
        for pattern, leaf in (
            (r"\.resnets\.(\d)", r".block.\1"),
            (r"\.upsamplers\.0", ".upsample"),
        ):
            found = re.search(rf"up_blocks\.(\d){pattern}", new)
            if found:
                up = f"up.{blocks - 1 - int(found[1])}{found.expand(leaf.replace('1', '2'))}"
                new = new.replace(found[0], up)
        for theirs, ours in (
            ("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2"),
            ("mid_block.attentions.0", "mid.attn_1"), ("group_norm", "norm"), ("to_q", "q"),
            ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"),
        ):  # fmt: skip
            new = new.replace(theirs, ours)
        convolved = "attn_1" in new and tensor.ndim == 2
        state[f"first_stage_model.{new}"] = tensor[:, :, None, None] if convolved else tensor
    return state


def clip(model: Any, prefix: str) -> State:
    """As transformers names it, below a prefix; its projection is left out, as in SD3's CLIP-L."""
    state = model.state_dict().items()
    bare = {n.removeprefix("text_model."): t for n, t in state if n != "text_projection.weight"}
    return {f"{prefix}text_model.{n}": t for n, t in bare.items()}


def open_clip(model: Any, prefix: str) -> State:
    """As OpenCLIP names it: q, k and v in one matrix, the projection from the left."""
    width = model.config.hidden_size
    state: State = {f"{prefix}text_projection": torch.eye(width)}
    for name, tensor in _fused(model.state_dict(), ("q_proj", "k_proj", "v_proj"), "in_proj"):
        new = name.removeprefix("text_model.")
        if new == "text_projection.weight":
            state[f"{prefix}text_projection"] = tensor.T
            continue
        for theirs, ours in (
            ("encoder.layers.", "transformer.resblocks."), ("layer_norm1", "ln_1"),
            ("layer_norm2", "ln_2"), ("fc1", "c_fc"), ("fc2", "c_proj"), ("self_attn", "attn"),
            ("final_layer_norm", "ln_final"), ("embeddings.token_embedding", "token_embedding"),
            ("embeddings.position_embedding.weight", "positional_embedding"),
            ("in_proj.", "in_proj_"),
        ):  # fmt: skip
            new = new.replace(theirs, ours)
        state[f"{prefix}{new}"] = tensor
    return state


def _fused(
    state: Mapping[str, torch.Tensor], parts: Sequence[str], whole: str
) -> list[tuple[str, torch.Tensor]]:
    """Entries of a state with some of its tensors below each other under another name."""
    result = {}
    for name, tensor in state.items():
        owner, _, leaf = name.rpartition(".")
        if owner.endswith(f".{parts[0]}"):
            stem = owner.removesuffix(parts[0])
            result[f"{stem}{whole}.{leaf}"] = torch.cat([state[f"{stem}{p}.{leaf}"] for p in parts])
        elif not owner.endswith(tuple(f".{p}" for p in parts[1:])):
            result[name] = tensor
    return list(result.items())


def _renamed(name: str, rules: Mapping[str, str]) -> str:
    for pattern, new in rules.items():
        found = re.match(pattern, name)
        if found:
            return found.expand(new) + name[found.end() :]
    raise LookupError(name)


def _swapped(tensor: torch.Tensor) -> torch.Tensor:
    """Scale and shift as shift and scale."""
    return torch.cat(tensor.chunk(2)[::-1])


_SD3 = {
    r"pos_embed\.pos_embed": "pos_embed",
    r"pos_embed\.proj": "x_embedder.proj",
    r"time_text_embed\.timestep_embedder\.linear_1": "t_embedder.mlp.0",
    r"time_text_embed\.timestep_embedder\.linear_2": "t_embedder.mlp.2",
    r"time_text_embed\.text_embedder\.linear_1": "y_embedder.mlp.0",
    r"time_text_embed\.text_embedder\.linear_2": "y_embedder.mlp.2",
    r"context_embedder": "context_embedder",
    r"transformer_blocks\.(\d)\.(attn2?)\.to_out\.0": r"joint_blocks.\1.x_block.\2.proj",
    r"transformer_blocks\.(\d)\.(attn2?)\.norm_([qk])": r"joint_blocks.\1.x_block.\2.ln_\3",
    r"transformer_blocks\.(\d)\.(attn2?)\.qkv": r"joint_blocks.\1.x_block.\2.qkv",
    r"transformer_blocks\.(\d)\.attn\.added": r"joint_blocks.\1.context_block.attn.qkv",
    r"transformer_blocks\.(\d)\.attn\.to_add_out": r"joint_blocks.\1.context_block.attn.proj",
    r"transformer_blocks\.(\d)\.attn\.norm_added_([qk])": (
        r"joint_blocks.\1.context_block.attn.ln_\2"
    ),
    r"transformer_blocks\.(\d)\.norm1\.linear": r"joint_blocks.\1.x_block.adaLN_modulation.1",
    r"transformer_blocks\.(\d)\.norm1_context\.linear": (
        r"joint_blocks.\1.context_block.adaLN_modulation.1"
    ),
    r"transformer_blocks\.(\d)\.ff\.net\.0\.proj": r"joint_blocks.\1.x_block.mlp.fc1",
    r"transformer_blocks\.(\d)\.ff\.net\.2": r"joint_blocks.\1.x_block.mlp.fc2",
    r"transformer_blocks\.(\d)\.ff_context\.net\.0\.proj": (
        r"joint_blocks.\1.context_block.mlp.fc1"
    ),
    r"transformer_blocks\.(\d)\.ff_context\.net\.2": r"joint_blocks.\1.context_block.mlp.fc2",
    r"norm_out\.linear": "final_layer.adaLN_modulation.1",
    r"proj_out": "final_layer.linear",
}


def sd3_transformer(model: Any) -> State:
    """With the names of Stability's `MMDiT`."""
    last = f"transformer_blocks.{model.config.num_layers - 1}.norm1_context."
    tensors = dict(_fused(model.state_dict(), ("to_q", "to_k", "to_v"), "qkv"))
    added = _fused(tensors, ("add_q_proj", "add_k_proj", "add_v_proj"), "added")
    return {
        f"model.diffusion_model.{_renamed(name, _SD3)}": (
            _swapped(tensor) if name.startswith((last, "norm_out.")) else tensor
        )
        for name, tensor in added
    }


_FLUX = {
    r"time_text_embed\.timestep_embedder\.linear_1": "time_in.in_layer",
    r"time_text_embed\.timestep_embedder\.linear_2": "time_in.out_layer",
    r"time_text_embed\.text_embedder\.linear_1": "vector_in.in_layer",
    r"time_text_embed\.text_embedder\.linear_2": "vector_in.out_layer",
    r"time_text_embed\.guidance_embedder\.linear_1": "guidance_in.in_layer",
    r"time_text_embed\.guidance_embedder\.linear_2": "guidance_in.out_layer",
    r"context_embedder": "txt_in",
    r"x_embedder": "img_in",
    r"transformer_blocks\.(\d)\.norm1\.linear": r"double_blocks.\1.img_mod.lin",
    r"transformer_blocks\.(\d)\.norm1_context\.linear": r"double_blocks.\1.txt_mod.lin",
    r"transformer_blocks\.(\d)\.attn\.qkv": r"double_blocks.\1.img_attn.qkv",
    r"transformer_blocks\.(\d)\.attn\.added": r"double_blocks.\1.txt_attn.qkv",
    r"transformer_blocks\.(\d)\.attn\.norm_q\.weight": (
        r"double_blocks.\1.img_attn.norm.query_norm.scale"
    ),
    r"transformer_blocks\.(\d)\.attn\.norm_k\.weight": (
        r"double_blocks.\1.img_attn.norm.key_norm.scale"
    ),
    r"transformer_blocks\.(\d)\.attn\.norm_added_q\.weight": (
        r"double_blocks.\1.txt_attn.norm.query_norm.scale"
    ),
    r"transformer_blocks\.(\d)\.attn\.norm_added_k\.weight": (
        r"double_blocks.\1.txt_attn.norm.key_norm.scale"
    ),
    r"transformer_blocks\.(\d)\.attn\.to_out\.0": r"double_blocks.\1.img_attn.proj",
    r"transformer_blocks\.(\d)\.attn\.to_add_out": r"double_blocks.\1.txt_attn.proj",
    r"transformer_blocks\.(\d)\.ff\.net\.0\.proj": r"double_blocks.\1.img_mlp.0",
    r"transformer_blocks\.(\d)\.ff\.net\.2": r"double_blocks.\1.img_mlp.2",
    r"transformer_blocks\.(\d)\.ff_context\.net\.0\.proj": r"double_blocks.\1.txt_mlp.0",
    r"transformer_blocks\.(\d)\.ff_context\.net\.2": r"double_blocks.\1.txt_mlp.2",
    r"single_transformer_blocks\.(\d)\.norm\.linear": r"single_blocks.\1.modulation.lin",
    r"single_transformer_blocks\.(\d)\.linear1": r"single_blocks.\1.linear1",
    r"single_transformer_blocks\.(\d)\.attn\.norm_q\.weight": (
        r"single_blocks.\1.norm.query_norm.scale"
    ),
    r"single_transformer_blocks\.(\d)\.attn\.norm_k\.weight": (
        r"single_blocks.\1.norm.key_norm.scale"
    ),
    r"single_transformer_blocks\.(\d)\.proj_out": r"single_blocks.\1.linear2",
    r"norm_out\.linear": "final_layer.adaLN_modulation.1",
    r"proj_out": "final_layer.linear",
}


def flux_transformer(model: Any, prefix: str = "model.diffusion_model.") -> State:
    """With the names of Black Forest Labs' `Flux`; theirs has no prefix, collections have one."""
    single, double = {}, {}
    for name, tensor in model.state_dict().items():
        if name.startswith("single_"):
            single[name.replace("proj_mlp", "attn.mlp")] = tensor
        else:
            double[name] = tensor
    fused = dict(_fused(single, ("to_q", "to_k", "to_v", "mlp"), "linear1"))
    single = {n.replace("attn.linear1", "linear1"): t for n, t in fused.items()}
    double = dict(_fused(double, ("to_q", "to_k", "to_v"), "qkv"))
    added = _fused(double, ("add_q_proj", "add_k_proj", "add_v_proj"), "added")
    return {
        prefix + _renamed(name, _FLUX): (
            _swapped(tensor) if name.startswith("norm_out.") else tensor
        )
        for name, tensor in (*added, *single.items())
    }


def t5(model: Any) -> State:
    prefix = "text_encoders.t5xxl.transformer."
    return {f"{prefix}{n}": t for n, t in model.state_dict().items() if "embed_tokens" not in n}


def _stable_diffusion(pipeline: Any) -> State:
    text = clip(pipeline.text_encoder, "cond_stage_model.transformer.")
    return {**ldm_unet(pipeline.unet), **ldm_autoencoder(pipeline.vae), **text}


def _stable_diffusion_2(pipeline: Any) -> State:
    text = open_clip(pipeline.text_encoder, "cond_stage_model.model.")
    return {**ldm_unet(pipeline.unet), **ldm_autoencoder(pipeline.vae), **text}


def _stable_diffusion_xl(pipeline: Any) -> State:
    return {
        **ldm_unet(pipeline.unet),
        **ldm_autoencoder(pipeline.vae),
        **clip(pipeline.text_encoder, "conditioner.embedders.0.transformer."),
        **open_clip(pipeline.text_encoder_2, "conditioner.embedders.1.model."),
    }


def _stable_diffusion_3(pipeline: Any) -> State:
    second = pipeline.text_encoder_2
    projection = "text_encoders.clip_g.transformer.text_projection.weight"
    return {
        **sd3_transformer(pipeline.transformer),
        **ldm_autoencoder(pipeline.vae),
        **clip(pipeline.text_encoder, "text_encoders.clip_l.transformer."),
        **clip(second, "text_encoders.clip_g.transformer."),
        projection: second.text_projection.weight,
        **t5(pipeline.text_encoder_3),
    }


def _flux(pipeline: Any) -> State:
    """As collections for ComfyUI have it; the authors' own file is the transformer alone."""
    return {
        **flux_transformer(pipeline.transformer),
        **ldm_autoencoder(pipeline.vae),
        **clip(pipeline.text_encoder, "text_encoders.clip_l.transformer."),
        **t5(pipeline.text_encoder_2),
    }


def _owned(make: Any) -> Any:
    return lambda pipeline: {n: t.detach().contiguous().clone() for n, t in make(pipeline).items()}


ORIGINAL = {
    "Stable Diffusion": _owned(_stable_diffusion),
    "Stable Diffusion 2": _owned(_stable_diffusion_2),
    "Stable Diffusion XL": _owned(_stable_diffusion_xl),
    "Stable Diffusion 3": _owned(_stable_diffusion_3),
    "Flux": _owned(_flux),
}
"""By the names of tiny pipelines: the state of a single file."""
