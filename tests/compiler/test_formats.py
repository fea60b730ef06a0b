"""Every command answers for what `convert` compiles, through the same row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_decoders import t5, whisper
from safetensors.torch import load_file, save_file
from speech import fastspeech2, vits
from tiny_pipelines import PIPELINES

import torch2mlx
from torch2mlx.compiler.route import format_of
from torch2mlx.errors import OptionError, ParityError, SourceError

KOKORO = {"istftnet": {}, "plbert": {}, "vocab": {"a": 1}}


def kokoro(folder: Path) -> None:
    parts = ("bert", "bert_encoder", "predictor", "decoder", "text_encoder")
    (folder / "voices").mkdir(parents=True)
    torch.save({part: {"w": torch.ones(2, 3)} for part in parts}, folder / "kokoro.pth")
    torch.save(torch.zeros(4, 1, 256), folder / "voices" / "one.pt")
    (folder / "config.json").write_text(json.dumps(KOKORO))


def saved(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)


SOURCES: dict[str, tuple[str, Any, str]] = {
    "vits": ("a speech model", lambda f: saved(vits(), f), "vits"),
    "fastspeech2": (
        "a speech model", lambda f: saved(fastspeech2(True), f),
        "fastspeech2_conformer_with_hifigan",
    ),
    "t5": ("an encoder-decoder", lambda f: saved(t5(), f), "t5"),
    "whisper": ("an encoder-decoder", lambda f: saved(whisper(), f), "whisper"),
    "kokoro": ("Kokoro's release", kokoro, "kokoro"),
    "diffusion": (
        "a pipeline of diffusers",
        lambda f: saved(PIPELINES["Stable Diffusion"](), f), "model_index",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_inspect_says_what_convert_does(name: str, tmp_path: Path) -> None:
    kind, make, model_type = SOURCES[name]
    make(tmp_path / "source")
    found = torch2mlx.inspect(tmp_path / "source")
    assert (found.program, found.model_type, found.route) == (kind, model_type, None)
    assert found.parameters > 0
    assert not any("cannot be converted" in text for text in found.hazards)


def test_a_plan_of_what_is_not_compiled_is_told_from_headers(tmp_path: Path) -> None:
    kokoro(tmp_path / "source")
    found = torch2mlx.plan(tmp_path / "source")
    assert [s.name for s in found.strategies] == ["direct"]
    assert found.parameters == 5 * 6
    assert found.recommended == "direct"
    with pytest.raises(OptionError, match="--quality belong to checkpoints of language models"):
        torch2mlx.plan(tmp_path / "source", quality=True)


@pytest.mark.parametrize("command", ["inspect", "plan", "verify"])
def test_what_needs_an_example_is_told(command: str, tmp_path: Path) -> None:
    (tmp_path / "torch2mlx.json").write_text("{}")
    more = (tmp_path,) if command == "verify" else ()
    with pytest.raises(SourceError, match=r"what builds a module: .* with an example"):
        getattr(torch2mlx, command)("package.module:factory", *more)


def test_verify_needs_to_know_how_the_folder_was_made(tmp_path: Path) -> None:
    kokoro(tmp_path / "source")
    (tmp_path / "made").mkdir()
    with pytest.raises(SourceError, match="only folders that torch2mlx converted have one"):
        torch2mlx.verify(tmp_path / "source", tmp_path / "made")


@pytest.mark.slow
def test_a_speech_model_is_planned_verified_and_examined(tmp_path: Path) -> None:
    source, made = tmp_path / "source", tmp_path / "made"
    fastspeech2(False).save_pretrained(source)
    torch2mlx.convert(source, made)
    total = (made / "model.safetensors").stat().st_size
    planned = {s.name: s.nbytes for s in torch2mlx.plan(source).strategies}
    assert planned["direct"] == total
    found = torch2mlx.verify(source, made)
    assert found.passed
    assert "19 tokens" in " ".join(found.cases)
    assert torch2mlx.doctor(made).healthy

    code = made / "model.py"
    before = code.read_text()
    code.write_text(before + "\nopen('ran', 'w')\n")
    with pytest.raises(ParityError, match=r"model\.py differs"):
        torch2mlx.verify(source, made)
    assert not Path("ran").exists()
    code.write_text(before)

    file = source / "model.safetensors"
    weights = load_file(file)
    name = next(n for n in weights if n.endswith("weight") and weights[n].ndim == 2)
    weights[name] = weights[name] + 1e-3
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ParityError):
        torch2mlx.verify(source, made)


@pytest.mark.slow
def test_a_pipeline_is_planned_verified_and_examined(tmp_path: Path) -> None:
    source, made = tmp_path / "source", tmp_path / "made"
    PIPELINES["Stable Diffusion"]().save_pretrained(source)
    torch2mlx.convert(source, made, quantize=True, q_mode="mxfp4")
    total = sum(path.stat().st_size for path in made.glob("*/model.safetensors"))
    planned = {s.name: s.nbytes for s in torch2mlx.plan(source).strategies}
    assert planned["mxfp4"] == total < planned["direct"]
    found = torch2mlx.verify(source, made)
    assert found.passed
    assert found.drift
    assert {case.split(":")[0] for case in found.cases} == {"text_encoder", "unet", "vae"}
    examined = torch2mlx.doctor(made)
    assert examined.healthy
    assert {"text_encoder", "unet", "vae"} <= examined.facts.keys()
    (made / "unet" / "model.safetensors").unlink()
    assert not torch2mlx.doctor(made).healthy
    with pytest.raises(SourceError, match=r"model\.safetensors missing"):
        torch2mlx.verify(source, made)


def test_a_language_model_has_no_row(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert format_of(tmp_path) is None
    assert format_of("owner/name") is None
