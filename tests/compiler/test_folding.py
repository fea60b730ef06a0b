"""Weight norms, old and new, become plain weights; other parametrizations stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrizations

import torch2mlx
from torch2mlx.compiler.folding import without_weight_norm


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_normalized_weights_are_written_as_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        parametrizations.weight_norm(nn.Conv1d(3, 4, 3)),
        nn.utils.weight_norm(nn.Conv1d(4, 5, 1), dim=1),
        nn.Linear(6, 2),
    ).eval()
    with torch.no_grad():
        module[0].parametrizations.weight.original0.mul_(3)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    x = torch.randn(2, 3, 8)
    made = torch2mlx.convert(module, tmp_path / "out", example_inputs=(x,))
    assert made.error is not None
    written = load_file(tmp_path / "out" / "model.safetensors")
    kinds = sorted(name.rpartition(".")[2] for name in written)
    assert kinds == ["bias"] * 3 + ["weight"] * 3
    assert "nn.Conv1d" in (tmp_path / "out" / "model.py").read_text()
    manifest = json.loads((tmp_path / "out" / "torch2mlx.json").read_text())
    assert manifest["verification"]["passed"]
    after = module.state_dict()  # the module itself stays as it was
    assert after.keys() == before.keys()
    assert all(torch.equal(after[n], t) for n, t in before.items())


def test_others_stay() -> None:
    plain = nn.Linear(3, 3)
    spectral = parametrizations.spectral_norm(nn.Linear(3, 3))
    assert without_weight_norm(nn.Sequential(plain, spectral)) is None
    both = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)), spectral)
    folded = without_weight_norm(both)
    assert folded is not None
    names = {name for name, _ in folded.named_parameters()}
    assert {"0.weight", "1.parametrizations.weight.original"} <= names
