"""Single files of Stable Diffusion, named as their authors do, against diffusers' own modules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from torch2mlx.errors import SourceError, UnsupportedError

pytest.importorskip("diffusers", reason="needs diffusers, of the extra `test`")

from tiny_pipelines import PIPELINES

from torch2mlx.compiler.pipelines.configs import RELEASES
from torch2mlx.compiler.pipelines.kinds import is_single_file
from torch2mlx.compiler.pipelines.single_file import opened_single_file
from torch2mlx.compiler.pipelines.source import class_of

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
AROUND = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip


def ldm_unet(model: Any) -> dict[str, torch.Tensor]:
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


def ldm_autoencoder(model: Any) -> dict[str, torch.Tensor]:
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


def ldm_state(pipeline: Any) -> dict[str, torch.Tensor]:
    text = pipeline.text_encoder.state_dict()
    prefix = "cond_stage_model.transformer.text_model."
    named = {f"{prefix}{n.removeprefix('text_model.')}": t for n, t in text.items()}
    state = {**ldm_unet(pipeline.unet), **ldm_autoencoder(pipeline.vae), **named}
    return {n: t.contiguous().clone() for n, t in state.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Any:
    """A single file, its models' configs beside it, and the pipeline."""
    pipeline = PIPELINES["Stable Diffusion"]()
    place = tmp_path_factory.mktemp("single") / "sd"
    pipeline.save_pretrained(place)
    for weights in place.rglob("*.safetensors"):
        weights.unlink()
    return place, ldm_state(pipeline), pipeline


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_every_model_has_its_weights(folder: Any, suffix: str) -> None:
    place, state, pipeline = folder
    file = place / f"sd{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": state, "global_step": 7}, file)
    else:
        save_file(state, file)
    assert is_single_file(file)
    with opened_single_file(file) as opened:
        assert list(opened.models) == ["text_encoder", "unet", "vae"]
        for name in opened.models:
            found, expected = opened.load(name).state_dict(), getattr(pipeline, name).state_dict()
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[n], t) for n, t in expected.items()), name


@pytest.mark.slow
def test_a_single_file_converts(folder: Any, tmp_path: Path, run_cli: Any) -> None:
    place, state, _ = folder
    torch.save({"state_dict": state}, place / "small.ckpt")
    run = run_cli("convert", place / "small.ckpt", tmp_path / "out", "--quiet")
    assert run.code == 0, run.err
    assert {p.name for p in (tmp_path / "out").iterdir() if p.is_dir()} == {
        "text_encoder", "unet", "vae", "scheduler",
    }  # fmt: skip


def test_sizes_of_the_releases() -> None:
    """Numbers of parameters as the model cards and papers state them."""
    counts = {
        "Stable Diffusion 1.x": {
            "unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480,
        },
        "Stable Diffusion 2.x": {
            "unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840,
        },
        "Stable Diffusion XL": {
            "unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480,
            "text_encoder_2": 694_659_840,
        },
    }  # fmt: skip
    found: dict[str, dict[str, int]] = {}
    for release in RELEASES:
        found[release.name] = {}
        for component, (library, name, config) in release.models.items():
            kind = class_of(library, name)
            with torch.device("meta"):
                if library == "diffusers":
                    model = kind(**config)
                else:
                    model = kind(kind.config_class(**config))
            size = sum(p.numel() for p in model.parameters())
            found[release.name][component] = size
    assert found == counts


def test_what_is_wrong_is_named(folder: Any, tmp_path: Path) -> None:
    place, state, _ = folder
    lacking = dict(state)
    del lacking["first_stage_model.decoder.mid.block_1.conv1.weight"]
    save_file(lacking, place / "lacking.safetensors")
    with (
        opened_single_file(place / "lacking.safetensors") as opened,
        pytest.raises(SourceError, match=r"1 weights of vae .*decoder\.mid_block\.resnets\.0"),
    ):
        opened.load("vae")
    save_file(state, tmp_path / "alone.safetensors")
    with (
        pytest.raises(UnsupportedError, match=r"known of Stable Diffusion 1\.x.*model_index\.json"),
        opened_single_file(tmp_path / "alone.safetensors"),
    ):
        pass

    class Unsafe:
        def __reduce__(self) -> Any:
            return print, ("run",)

    torch.save({"state_dict": state, "callbacks": Unsafe()}, tmp_path / "unsafe.ckpt")
    with (
        pytest.raises(SourceError, match=r"print.*nothing was run"),
        opened_single_file(tmp_path / "unsafe.ckpt"),
    ):
        pass
    unet = {n: t for n, t in state.items() if n.startswith("model.")}
    save_file(unet, place / "unet.safetensors")
    with opened_single_file(place / "unet.safetensors") as opened:
        assert list(opened.models) == ["unet"]
        assert "left out text_encoder, vae: not in unet.safetensors" in opened.notes
