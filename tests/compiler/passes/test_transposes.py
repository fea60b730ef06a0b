"""Transposes stay at the borders of a convolutional network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from torch2mlx.compiler.passes.transposes import sink_transposes


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(functional.max_pool2d(self.norm(functional.relu(self.first(x))), 2))


def test_convolution_relu_norm_pool_convolution(check: Any) -> None:
    before, after = check(sink_transposes, Plain(), torch.randn(2, 3, 6, 6))
    assert sum("transpose" in line for line in before) == 8
    assert after == [
        "%0 = transpose(x, (0, 2, 3, 1))",
        "%1 = first(%0)",
        "%2 = maximum(%1, 0)",
        "%3 = norm(%2)",
        "%4 = max_pool(%3, (2, 2), (2, 2), (0, 0), (1, 1))",
        "%5 = second(%4)",
        "%6 = transpose(%5, (0, 3, 1, 2))",
    ]


class Rich(nn.Module):
    """Everything that transposes pass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.scale = nn.Parameter(torch.randn(4, 1, 1))
        self.time = nn.Linear(5, 4)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.conv(x)
        h = h * self.scale + self.time(t)[:, :, None, None]
        h = h * torch.sigmoid(h.mean((2, 3), keepdim=True))
        h = functional.pad(h, (1, 0, 0, 2))[:, :, :-2, 1:]
        low, high = h.split(2, dim=1)
        return self.last(torch.cat([h, high, low], dim=1).softmax(1))


def test_broadcasts_reductions_pads_slices_and_joins(check: Any) -> None:
    _, after = check(sink_transposes, Rich(), torch.randn(2, 3, 4, 6), torch.randn(2, 5))
    assert sum("transpose" in line for line in after) == 2
    assert "transpose(x" in after[0]
    assert "transpose" in after[-1]


class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(2).transpose(1, 2)


def test_patches_as_a_sequence_are_a_reshape(check: Any) -> None:
    _, after = check(sink_transposes, Patches(), torch.randn(2, 3, 4, 6))
    assert after[1:] == ["%1 = conv(%0)", "%2 = reshape(%1, (2, 6, 4))"]


def test_flattened_images_get_their_order_back(check: Any) -> None:
    class Classifier(Patches):
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).flatten(1)

    _, after = check(sink_transposes, Classifier(), torch.randn(2, 3, 4, 6))
    assert after[2:] == ["%2 = transpose(%1, (0, 3, 1, 2))", "%3 = reshape(%2, (2, 24))"]


def test_attention_keeps_the_transposes_of_its_author(check: Any) -> None:
    class Heads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            q = x.view(2, 5, 2, 4).transpose(1, 2)
            y = functional.scaled_dot_product_attention(q * 2, q, q + 1)
            return y.transpose(1, 2).reshape(2, 5, 8)

    before, after = check(sink_transposes, Heads(), torch.randn(2, 5, 8))
    assert after == before


def test_dynamic_extents_stay_symbolic(check: Any) -> None:
    height = torch.export.Dim("height", min=4, max=9)
    given = torch.randn(2, 3, 4, 6), torch.randn(2, 5)
    shapes = {"x": {2: height}, "t": {}}
    _, after = check(sink_transposes, Rich(), *given, dynamic_shapes=shapes)
    assert sum("transpose" in line for line in after) == 2


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_composition(check: Any, axes: tuple[int, ...]) -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.permute(1, 2, 0).permute(axes) + 1

    _, after = check(sink_transposes, Twice(), torch.randn(2, 3, 4))
    order = tuple((1, 2, 0)[a] for a in axes)
    start = [] if order == (0, 1, 2) else [f"%0 = transpose(x, {order})"]
    assert after == [*start, f"%{len(start)} = add({'%0' if start else 'x'}, 1)"]
