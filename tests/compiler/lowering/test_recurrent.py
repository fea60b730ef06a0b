"""Recurrent networks whose length may change, beside PyTorch."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from torch import nn

import torch2mlx


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.inner = kind(4, 6, batch_first=True, **options)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output, state = self.inner(x)
        return (output, *(state if isinstance(state, tuple) else (state,)))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.LSTM, {}),
        (nn.LSTM, {"bidirectional": True, "num_layers": 2, "proj_size": 3}),
        (nn.GRU, {"bidirectional": True}),
        (nn.RNN, {"nonlinearity": "relu"}),
    ],
)
def test_any_length_is_taken(kind: Any, options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Recurrent(kind, **options).eval()
    shapes = {"x": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}}
    made = torch2mlx.convert(
        module, tmp_path / "out", example_inputs=(torch.randn(2, 7, 4),), dynamic_shapes=shapes
    )
    assert any("length=" in case for case in made.cases)
    model = runpy.run_path(str(tmp_path / "out" / "model.py"))["load"](str(tmp_path / "out"))
    for batch, length in ((2, 7), (3, 1), (1, 31)):
        x = torch.randn(batch, length, 4)
        with torch.no_grad():
            expected = module(x)
        for want, got in zip(expected, model(mx.array(x.numpy())), strict=True):
            assert np.allclose(want.numpy(), np.array(got), atol=1e-6)
