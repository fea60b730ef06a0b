"""Checkpoints of trainers, every name of which has a prefix more than the model knows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from torch2mlx.architectures.port import load_port
from torch2mlx.routing import open_convertible


def _trained(plain: Path, folder: Path, prefix: str) -> Path:
    """The folder with its weights as Lightning's trainer writes them."""
    state = load_file(plain / "model.safetensors")
    saved = {
        "epoch": 1,
        "global_step": 20,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"{prefix}{name}": tensor for name, tensor in state.items()},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(20.0)}}, "param_groups": []}],
        "hyper_parameters": {"lr": 1e-4},
    }
    folder.mkdir()
    torch.save(saved, folder / "epoch=1-step=20.ckpt")
    for file in plain.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    return folder


def test_lightnings_checkpoint_goes_through_mlx_lms_port(
    checkpoint: Callable[..., Path], tmp_path: Path, run_cli: Any
) -> None:
    plain = checkpoint("llama")
    source = _trained(plain, tmp_path / "trained", "model.")
    done = run_cli("convert", source, tmp_path / "out")
    assert done.code == 0, done.err
    assert "the prefix 'model.' was taken off every name" in done.message
    manifest = json.loads((tmp_path / "out" / "torch2mlx.json").read_text())
    assert manifest["plan"]["port"] == "mlx_lm.models.llama"
    assert manifest["verification"]["passed"]
    assert run_cli("convert", plain, tmp_path / "plain", "--no-verify").code == 0
    ours, expected = (load_file(tmp_path / n / "model.safetensors") for n in ("out", "plain"))
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())
    assert run_cli("verify", source, tmp_path / "out").code == 0


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("llama_tied", ""),  # whose own names all begin with "model."
        ("llama_tied", "model."),
        ("llama", "net.student."),
        ("gpt_neox", "model."),  # whose port has names of its own
        ("qwen3_moe", "model."),
    ],
)
def test_names_are_those_that_the_port_reads(
    name: str, prefix: str, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    plain = checkpoint(name)
    opened = open_convertible(_trained(plain, tmp_path / "trained", prefix), None, False)
    try:
        assert opened.state.keys() == load_file(plain / "model.safetensors").keys()
        assert any(repr(prefix) in note for note in opened.notes) == bool(prefix)
        load_port(opened.config).map_state(opened.state)
    finally:
        opened.source.close()


def test_a_prefix_of_another_model_stays(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = _trained(checkpoint("llama"), tmp_path / "trained", "model.")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "model_type": "no_such_type"}))
    from torch2mlx.sources import open_checkpoint
    from torch2mlx.sources.prefix import without_prefix

    opened = open_checkpoint(source)
    try:
        assert without_prefix(opened, lambda state: False) is opened
    finally:
        opened.source.close()
