"""Rotary position embedding: spellings that become `mx.fast.rope`, and ones that must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch2mlx.compiler.passes.fusion import fuse
from torch2mlx.compiler.passes.simplify import simplify

Rotation = Callable[[Tensor], Tensor]


def halves(x: Tensor) -> Tensor:
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-second, first), dim=-1)


def neighbours(x: Tensor) -> Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


class Rotary(nn.Module):
    def __init__(self, rotate: Rotation, start: int = 0, outer: bool = False) -> None:
        super().__init__()
        self.rotate, self.start, self.outer = rotate, start, outer
        self.register_buffer("inv_freq", 100.0 ** (-torch.arange(4.0) / 4))

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(self.start, self.start + x.shape[2])
        if self.outer:
            angles = (self.inv_freq[None, :, None] @ positions[None, None].float()).transpose(1, 2)
        else:
            angles = positions[None, :, None].float() * self.inv_freq
        if self.rotate is neighbours:
            angles = angles.repeat_interleave(2, dim=-1)
        else:
            angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)
        return x * cos + self.rotate(x) * sin


def fused(program: Any) -> Any:
    return simplify(fuse(simplify(program)))


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize(("rotate", "traditional"), [(halves, False), (neighbours, True)])
def test_both_ways_to_pair(check: Any, rotate: Rotation, traditional: bool, outer: bool) -> None:
    _, after = check(fused, Rotary(rotate, outer=outer), torch.randn(2, 3, 5, 8))
    assert len(after) == 2
    assert "divide(1.0, inv_freq)" in after[0]
    assert f"rope(x, 8, traditional={traditional}" in after[1]


def test_lengths_that_change_and_a_later_start(check: Any) -> None:
    shapes = {"x": {2: torch.export.Dim("length", min=2, max=9)}}
    _, after = check(fused, Rotary(halves, 3), torch.randn(2, 3, 5, 8), dynamic_shapes=shapes)
    assert len(after) == 2
    assert "offset=3" in after[1]


def test_a_part_of_every_head(check: Any) -> None:
    class Part(Rotary):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat((super().forward(x[..., :8]), x[..., 8:]), dim=-1)

    _, after = check(fused, Part(halves), torch.randn(2, 3, 5, 12))
    assert len(after) == 2
    assert "rope(x, 8, " in after[1]


def test_positions_from_the_caller_stay(check: Any) -> None:
    class Given(Rotary):
        def forward(self, x: Tensor, positions: Tensor) -> Tensor:  # type: ignore[override]
            angles = positions[:, None, :, None].float() * self.inv_freq
            angles = torch.cat((angles, angles), dim=-1)
            return x * angles.cos() + halves(x) * angles.sin()

    _, after = check(fused, Given(halves), torch.randn(2, 3, 5, 8), torch.arange(10).view(2, 5))
    assert not any("rope" in line for line in after)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: torch.cat((x[..., 4:], -x[..., :4]), dim=-1),
        lambda x: torch.cat((-x[..., 3:], x[..., :3]), dim=-1),
        lambda x: torch.stack((-x[..., ::2], x[..., 1::2]), dim=-1).flatten(-2),
    ],
)
def test_other_rotations_stay(check: Any, wrong: Rotation) -> None:
    _, after = check(fused, Rotary(wrong), torch.randn(2, 3, 5, 8))
    assert not any("rope" in line for line in after)
