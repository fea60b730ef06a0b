"""Any module's matrices are fitted to what runs through them; others are rounded and named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import torch2mlx
from torch2mlx.errors import DestinationError, OptionError


class Reader(nn.Module):
    """Embedding, a matrix that is used twice, and an attention-like mixture of matrices."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(96, 64)
        self.twice = nn.Linear(64, 64)
        self.up, self.gate = nn.Linear(64, 192), nn.Linear(64, 192)
        self.down = nn.Linear(192, 64)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.words(ids)
        hidden = hidden + self.twice(torch.tanh(self.twice(hidden)))
        # Inputs along few directions, as in trained models: what calibration makes use of.
        hidden = hidden * torch.linspace(0.02, 3, 64) ** 2
        return self.down(torch.relu(self.gate(hidden)) * self.up(hidden))


def _outputs(folder: Path, ids: torch.Tensor) -> np.ndarray:
    import mlx.core as mx

    from torch2mlx.compiler.parity import import_model

    with mx.stream(mx.cpu):
        model = import_model(folder).load(str(folder))
        found = model(mx.array(ids.numpy()))
        mx.eval(found)
    return np.array(found)


def test_a_module_comes_closer_to_the_original_than_by_rounding(tmp_path: Path) -> None:
    module = Reader().eval()
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 96, (32, 16)))
    more = tmp_path / "more.pt"
    torch.save((ids[8:],), more)
    options = {"quantize": True, "q_bits": 3, "example_inputs": (ids[:8],), "verify": False}
    torch2mlx.convert(module, tmp_path / "rounded", **options)
    made = torch2mlx.convert(
        module, tmp_path / "fitted", calibrate=True, calibration_text=(str(more),), **options
    )
    unseen = torch.from_numpy(np.random.default_rng(1).integers(0, 96, (8, 16)))
    with torch.no_grad():
        expected = module(unseen).numpy()
    rounded, fitted = (
        float(np.linalg.norm(_outputs(tmp_path / name, unseen) - expected))
        for name in ("rounded", "fitted")
    )
    assert fitted < 0.8 * rounded
    note = next(n for n in made.notes if "rounded to nearest" in n)
    assert "2 modules" in note
    assert "words" in note
    assert "twice" in note
    config = json.loads((tmp_path / "fitted/config.json").read_text())
    assert config["quantization"]["bits"] == 3
    assert not (tmp_path / ".fitted.calibration").exists()


def test_the_proof_holds_with_calibrated_values(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).eval()
    made = torch2mlx.convert(
        module,
        tmp_path / "out",
        quantize=True,
        calibrate=True,
        example_inputs=(torch.randn(64, 64),),
    )
    assert made.error < 1e-4
    manifest = json.loads((tmp_path / "out/torch2mlx.json").read_text())
    assert manifest["verification"]["audit"]["counts"]["calibrated"] == 2


def test_options_of_language_models_are_refused(tmp_path: Path) -> None:
    options = {"quantize": True, "calibrate": True, "example_inputs": (torch.zeros(2, 64),)}
    module = nn.Sequential(nn.Linear(64, 64))
    with pytest.raises(OptionError, match="--distill"):
        torch2mlx.convert(module, tmp_path / "a", distill=True, **options)
    with pytest.raises(OptionError, match="--calibration-tokens"):
        torch2mlx.convert(module, tmp_path / "a", calibration_tokens=512, **options)
    text = tmp_path / "text.txt"
    text.write_text("words")
    with pytest.raises(OptionError, match=r"--calibration-text .*text\.txt"):
        torch2mlx.convert(module, tmp_path / "a", calibration_text=(str(text),), **options)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / ".out.calibration").write_text("in the way")
    with pytest.raises(DestinationError, match=r"\.out\.calibration: cannot be created"):
        torch2mlx.convert(
            nn.Sequential(nn.Linear(64, 64)).eval(),
            tmp_path / "out",
            quantize=True,
            calibrate=True,
            example_inputs=(torch.randn(8, 64),),
        )
    assert not (tmp_path / "out").exists()
