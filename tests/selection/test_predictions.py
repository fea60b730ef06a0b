"""Predicted sizes and memory against what is written and what MLX then holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

import torch2mlx
from predictions import MODELS, hold, make_source, predict
from torch2mlx.architectures.port import load_port
from torch2mlx.selection.memory import share_of_weights

_SLOW = ("direct", "8-bit", "mixed 4/6-bit")


@pytest.mark.parametrize("name", ["llama", "phi3", "mixtral"])
@pytest.mark.parametrize(
    "strategy", ["4-bit", *(pytest.param(one, marks=pytest.mark.slow) for one in _SLOW)]
)
def test_size_and_memory_are_as_predicted(name: str, strategy: str, tmp_path: Path) -> None:
    make_source(name, tmp_path / "source")
    context = MODELS[name][2]
    found = torch2mlx.plan(tmp_path / "source", context=context).strategies
    planned = {one.name: one for one in found}[strategy]
    torch2mlx.convert(tmp_path / "source", tmp_path / "out", verify=False, **planned.options)
    written = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert planned.nbytes == pytest.approx(written, rel=0.03)
    held = hold(tmp_path / "out", context)
    assert predict(tmp_path / "source", planned, context) == pytest.approx(held, rel=0.10)


def test_each_machine_holds_whole_embeddings_and_its_part_of_layers(
    checkpoint: Callable[..., Path],
) -> None:
    folder = checkpoint("llama")
    port = load_port(json.loads((folder / "config.json").read_text()))
    split = whole = 0
    with safe_open(folder / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118
            size = file.get_tensor(name).numel()
            split, whole = (split + size, whole) if "_proj" in name else (split, whole + size)
    assert share_of_weights(port, 2) == pytest.approx((whole + split / 2) / (whole + split))
    assert share_of_weights(port, 4) is None  # of two heads of keys and values
