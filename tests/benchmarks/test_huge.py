"""Sparse checkpoints of huge models have the shapes that are planned for, and take no room."""

from __future__ import annotations

from pathlib import Path

import pytest

import torch2mlx
from huge import MODELS, write_sparse

# Of the published models.
PARAMETERS = {"llama-3-70b": 70_553_706_496, "deepseek-v3": 671_026_419_200}


def test_seventy_billion_parameters_are_planned(tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    size = write_sparse("llama-3-70b", folder)
    assert size == 2 * PARAMETERS["llama-3-70b"]
    assert sum(path.stat().st_blocks * 512 for path in folder.iterdir()) < 10**7
    selection = torch2mlx.plan(folder)
    assert selection.parameters == PARAMETERS["llama-3-70b"]
    assert {s.name: s.mac for s in selection.strategies}["4-bit"] == 64


@pytest.mark.parametrize("name", ["deepseek-v3", "trillion"])
def test_experts_in_fp8_are_planned(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    layers = MODELS[name][0]["first_k_dense_replace"] + 1
    write_sparse(name, folder, layers=layers)
    selection = torch2mlx.plan(folder, context=4096)
    config = MODELS[name][0]
    experts = 3 * config["n_routed_experts"] * config["moe_intermediate_size"]
    assert selection.parameters > experts * config["hidden_size"]
    four = next(s for s in selection.strategies if s.name == "4-bit")
    assert 4.5 <= four.bits_per_weight < 4.6
