"""Folders of diffusers' pipelines, as its `save_pretrained` writes them, converted as a whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import torch2mlx
from torch2mlx.errors import SourceError, UnsupportedError

pytest.importorskip("diffusers", reason="needs diffusers, of the extra `test`")

from tiny_pipelines import PIPELINES

from torch2mlx.compiler.pipelines import conversion
from torch2mlx.compiler.pipelines.source import read_pipeline


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_every_model_of_a_pipeline_equals_pytorch(name: str, tmp_path: Path) -> None:
    pipeline = PIPELINES[name]()
    pipeline.save_pretrained(tmp_path / "source")
    made = torch2mlx.convert(tmp_path / "source", tmp_path / "out")
    models = {n for n, c in pipeline.components.items() if hasattr(c, "state_dict")}
    assert made.parts.keys() == models
    assert all(error is not None and error <= 1e-4 for error in made.parts.values())
    assert made.error == max(made.parts.values())
    for part in models:
        manifest = json.loads((tmp_path / "out" / part / "torch2mlx.json").read_text())
        assert manifest["verification"]["passed"]
    scheduler = "scheduler/scheduler_config.json"
    copied = (tmp_path / "out" / scheduler).read_bytes()
    assert copied == (tmp_path / "source" / scheduler).read_bytes()


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_the_next_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PIPELINES["Flux"]().save_pretrained(tmp_path / "source")
    compiled: list[str] = []
    original = conversion.compile_module

    def stopped(module: Any, folder: Path, **options: Any) -> Any:
        compiled.append(folder.name)
        if folder.name == "text_encoder_2" and len(compiled) == 2:
            raise KeyboardInterrupt("1 finished file is kept")
        return original(module, folder, **options)

    monkeypatch.setattr(conversion, "compile_module", stopped)
    options = {"verify": False}
    with pytest.raises(KeyboardInterrupt, match="finished files are kept"):
        torch2mlx.convert(tmp_path / "source", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    made = torch2mlx.convert(tmp_path / "source", tmp_path / "out", **options)
    expected = ["text_encoder", "text_encoder_2", "text_encoder_2", "transformer", "vae"]
    assert compiled == expected
    assert list(made.parts) == list(dict.fromkeys(expected))
    assert set(made.parts.values()) == {None}


def test_what_is_wrong_is_named(tmp_path: Path, run_cli: Any) -> None:
    folder = tmp_path / "source"
    PIPELINES["Flux"]().save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())

    def rewritten(**entries: Any) -> Path:
        (folder / "model_index.json").write_text(json.dumps({**index, **entries}))
        return folder

    with pytest.raises(SourceError, match="names prior, but there is no such folder"):
        read_pipeline(rewritten(prior=["diffusers", "PriorTransformer"]))
    with pytest.raises(UnsupportedError, match=r"transformer \(pipeline\.My\w+\) is called"):
        read_pipeline(rewritten(transformer=["pipeline", "MyTransformer"]))
    opened = read_pipeline(rewritten())
    assert list(opened.models) == ["text_encoder", "text_encoder_2", "transformer", "vae"]
    assert opened.others == ("scheduler",)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    lost = tensors.pop("decoder.conv_in.weight")
    save_file(tensors, weights)
    with pytest.raises(SourceError, match=r"1 weights of AutoencoderKL are missing: decoder\.conv"):
        opened.load("vae")
    weights.unlink()
    with pytest.raises(SourceError, match="diffusers cannot load it as AutoencoderKL"):
        opened.load("vae")
    save_file({**tensors, "decoder.conv_in.weight": lost}, weights.with_suffix(".fp16.safetensors"))
    assert opened.load("vae").decoder.conv_in.weight.equal(lost)
    refused = run_cli("convert", folder, tmp_path / "out", "--max-kl", "0.1")
    assert (refused.code, "--max-kl" in refused.message) == (2, True)
    shown = run_cli("inspect", folder)
    assert shown.code == 0
    assert "a pipeline of diffusers" in " ".join(shown.out.split())
