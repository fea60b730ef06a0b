"""Calls that are not needed go, results stay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torch2mlx.compiler.passes.simplify import simplify


def test_idle_calls(check: Any) -> None:
    class Idle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return ((x + 0)[:, :] * 1.0).reshape(2, 3).expand(2, 3) - 1

    _, after = check(simplify, Idle(), torch.randn(2, 3))
    assert after == ["%0 = subtract(x, 1)"]


def test_a_change_of_type_stays(check: Any) -> None:
    class Cast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0.0

    _, after = check(simplify, Cast(), torch.arange(3))
    assert after == ["%0 = astype(x, float32)"]


def test_repeated_calls(check: Any) -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(x) * torch.exp(x) + torch.exp(-x)

    _, after = check(simplify, Twice(), torch.randn(3))
    assert after == [
        "%0 = exp(x)",
        "%1 = multiply(%0, %0)",
        "%2 = negative(x)",
        "%3 = exp(%2)",
        "%4 = add(%1, %3)",
    ]


def test_random_numbers_are_drawn_twice() -> None:
    from .conftest import listing, lowered

    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.rand_like(x) - torch.rand_like(x)

    program = lowered(Noise(), torch.randn(3))
    assert listing(simplify(program)) == listing(program)


def test_reshape_with_a_dynamic_extent_is_idle_only_if_it_is_for_all_sizes(check: Any) -> None:
    class View(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(x.shape[0], 4).reshape(-1, 2, 2) * 2

    shapes = {"x": {0: torch.export.Dim("batch", min=2, max=8)}}
    _, after = check(simplify, View(), torch.randn(2, 4), dynamic_shapes=shapes)
    assert len(after) == 2
    assert after[0].startswith("%0 = reshape(x, (")
