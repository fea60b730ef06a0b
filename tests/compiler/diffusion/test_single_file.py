"""Single files of Stable Diffusion, named as their authors do, against diffusers' own modules."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from torch2mlx.errors import SourceError, UnsupportedError

pytest.importorskip("diffusers", reason="needs diffusers, of the extra `test`")

from original_names import ORIGINAL, flux_transformer
from tiny_pipelines import PIPELINES

from torch2mlx.compiler.pipelines.configs import RELEASES
from torch2mlx.compiler.pipelines.kinds import is_single_file
from torch2mlx.compiler.pipelines.single_file import opened_single_file
from torch2mlx.compiler.pipelines.source import class_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: Any) -> Any:
    """By name: a folder of the models' configs alone, the state of a single file, the pipeline."""

    @cache
    def make(name: str) -> tuple[Path, dict[str, torch.Tensor], Any]:
        pipeline = PIPELINES[name]()
        place = tmp_path_factory.mktemp("single") / "pipeline"
        pipeline.save_pretrained(place)
        for weights in place.rglob("*.safetensors"):
            weights.unlink()
        return place, ORIGINAL[name](pipeline), pipeline

    return make


@pytest.fixture
def folder(made: Any) -> Any:
    return made("Stable Diffusion")


@pytest.fixture
def narrow_flux(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers splits Flux's fused matrices at 3072, the width of the release: here at 32."""
    from diffusers.loaders import single_file_model, single_file_utils

    release = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers
    code = release.__code__
    constants = tuple(32 if value == 3072 else value for value in code.co_consts)
    assert constants != code.co_consts
    narrow = FunctionType(code.replace(co_consts=constants), release.__globals__)
    classes: Any = single_file_model.SINGLE_FILE_LOADABLE_CLASSES
    entry = classes["FluxTransformer2DModel"]
    monkeypatch.setitem(entry, "checkpoint_mapping_fn", narrow)


def check_models(file: Path, pipeline: Any, expected: list[str]) -> None:
    """Against the pipeline that the file was made of, and what diffusers reads of it."""
    with opened_single_file(file) as opened:
        assert list(opened.models) == expected
        for name in opened.models:
            model = getattr(pipeline, name)
            found, wanted = opened.load(name).state_dict(), dict(model.state_dict())
            if "text_projection.weight" in wanted and name == "text_encoder":
                # Files of SD3 lack it; diffusers fills in the identity.
                wanted["text_projection.weight"] = torch.eye(32)
            assert found.keys() == wanted.keys()
            assert all(torch.equal(found[n], t) for n, t in wanted.items()), name
            if hasattr(model, "from_single_file"):
                theirs = type(model).from_single_file(
                    str(file), config=str(file.parent), subfolder=name, local_files_only=True
                )
                assert all(torch.equal(found[n], t) for n, t in theirs.state_dict().items()), name


@pytest.mark.parametrize("name", ORIGINAL)
def test_every_model_has_its_weights(name: str, made: Any, narrow_flux: None) -> None:
    place, state, pipeline = made(name)
    file = place / "whole.safetensors"
    save_file(state, file)
    assert is_single_file(file)
    models = sorted(n for n, part in pipeline.components.items() if hasattr(part, "state_dict"))
    check_models(file, pipeline, models)


def test_torch_files(folder: Any) -> None:
    place, state, pipeline = folder
    file = place / "sd.ckpt"
    torch.save({"state_dict": state, "global_step": 7}, file)
    assert is_single_file(file)
    check_models(file, pipeline, ["text_encoder", "unet", "vae"])


def test_the_authors_own_file_of_flux(made: Any, narrow_flux: None) -> None:
    """The transformer alone, without a prefix."""
    place, _, pipeline = made("Flux")
    tensors = flux_transformer(pipeline.transformer, "")
    save_file({n: t.clone() for n, t in tensors.items()}, place / "flux.safetensors")
    assert is_single_file(place / "flux.safetensors")
    check_models(place / "flux.safetensors", pipeline, ["transformer"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Stable Diffusion", "Stable Diffusion 3", "Flux"])
def test_a_single_file_converts(
    name: str, made: Any, narrow_flux: None, tmp_path: Path, run_cli: Any
) -> None:
    place, state, pipeline = made(name)
    torch.save({"state_dict": state}, place / "small.ckpt")
    run = run_cli("convert", place / "small.ckpt", tmp_path / "out", "--quiet")
    assert run.code == 0, run.err
    models = {n for n, part in pipeline.components.items() if hasattr(part, "state_dict")}
    assert {p.name for p in (tmp_path / "out").iterdir() if p.is_dir()} == {*models, "scheduler"}


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
    packed = {**state, "model.diffusion_model.out.2.scale_weight": torch.ones(1)}
    save_file(packed, place / "packed.safetensors")
    with (
        pytest.raises(UnsupportedError, match=r"out\.2\.scale_weight belongs to a packed weight"),
        opened_single_file(place / "packed.safetensors"),
    ):
        pass
    unet = {n: t for n, t in state.items() if n.startswith("model.")}
    save_file(unet, place / "unet.safetensors")
    with opened_single_file(place / "unet.safetensors") as opened:
        assert list(opened.models) == ["unet"]
        assert "left out text_encoder, vae: not in unet.safetensors" in opened.notes
