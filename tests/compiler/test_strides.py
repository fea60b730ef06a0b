"""Strides of memory where a graph of values shows the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import torch2mlx
from torch2mlx.errors import CompileError


class Windows(nn.Module):
    """Windows of 4 that overlap by 2, of rows that lie in memory as `how` says."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sin(x)
        if self.how == "transposed":
            x = x.transpose(0, 1)
        elif self.how == "with gaps":
            x = x[:, ::2]
        row, column = x.stride()
        return x.as_strided((3, 4, x.shape[1]), (2 * row, row, column)) * 2


@pytest.mark.parametrize("how", ["whole", "transposed"])
def test_windows_of_a_tensor_without_gaps(how: str, tmp_path: Path) -> None:
    shape = (6, 8) if how == "transposed" else (8, 6)
    result = torch2mlx.convert(
        Windows(how), tmp_path / "out", example_inputs=(torch.randn(*shape),)
    )
    assert result.cases == ("example", "fresh values")


def test_strides_of_a_tensor_with_gaps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="as_strided"):
        torch2mlx.convert(
            Windows("with gaps"), tmp_path / "out", example_inputs=(torch.randn(8, 6),)
        )
