"""Lookups at every place in order, as the masks of transformers have them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torch2mlx.compiler.passes.lookups import drop_lookups
from torch2mlx.compiler.passes.simplify import simplify


class Padding(nn.Module):
    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, mask: Tensor) -> Tensor:
        batch, length = mask.shape
        rows = torch.arange(batch)[:, None, None, None]
        keys = (torch.arange(length) + self.shift)[None, None, None, :]
        queries = torch.arange(length)[None, None, :, None]
        return mask[rows, keys % length if self.shift else keys] & (queries >= 0)


def applied(program: Any) -> Any:
    return simplify(drop_lookups(simplify(program)))


SHAPES = {"mask": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=9)}}


def test_a_padding_mask_is_the_mask_with_new_axes(check: Any) -> None:
    mask = torch.rand(3, 5) > 0.5
    before, after = check(applied, Padding(0), mask, dynamic_shapes=SHAPES)
    assert len(before) > 6
    assert [line.split(" = ")[1].split("(")[0] for line in after] == ["expand_dims", "broadcast_to"]


def test_other_places_stay(check: Any) -> None:
    _, after = check(applied, Padding(1), torch.rand(3, 5) > 0.5, dynamic_shapes=SHAPES)
    assert any("getitem" in line for line in after)
