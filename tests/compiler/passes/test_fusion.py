"""Spellings that become functions of MLX, and ones that must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from torch2mlx.compiler.passes.fusion import fuse
from torch2mlx.compiler.passes.simplify import simplify


class Norm(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(8))
        self.bias = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight, self.bias)


def llama(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    y = x.to(torch.float32)
    return w * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


RMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "rsqrt": llama,
    "sqrt": lambda x, w, b: x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * w,
    "power": lambda x, w, b: w * (x * (x.square().mean(2, keepdim=True) + 1e-6) ** -0.5),
}


@pytest.mark.parametrize("name", RMS)
def test_rms_norm(check: Any, name: str) -> None:
    before, after = check(fuse, Norm(RMS[name]), torch.randn(2, 3, 8))
    assert len(before) > 3
    assert after == ["%0 = rms_norm(x, weight, 1e-06)"]


def test_half_precision_is_fused_where_it_is_rounded_at_the_same_places() -> None:
    from .conftest import listing, lowered

    module = Norm(llama).half()
    program = simplify(fuse(simplify(lowered(module, torch.randn(2, 8).half()))))
    assert listing(program) == ["%0 = rms_norm(x, weight, 1e-06)"]
    rounded = Norm(lambda x, w, b: x * torch.rsqrt(x.square().mean(-1, True) + 1e-6)).half()
    program = fuse(lowered(rounded, torch.randn(2, 8).half()))
    assert not any("rms_norm" in line for line in listing(program))


@pytest.mark.parametrize("spread", ["var", "mean"])
def test_layer_norm(check: Any, spread: str) -> None:
    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        if spread == "var":
            variance = x.var(-1, keepdim=True, unbiased=False)
        else:
            variance = centred.pow(2).mean(-1, keepdim=True)
        return centred / torch.sqrt(variance + 1e-5) * w + b

    _, after = check(fuse, Norm(function), torch.randn(2, 3, 8))
    assert after == ["%0 = layer_norm(x, weight, bias, 1e-05)"]


def test_norms_that_differ_stay(check: Any) -> None:
    def unbiased(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        spread = x.std(-1, keepdim=True) + 1e-6
        other = x.pow(2).mean(-2, keepdim=True)
        return w * (x - x.mean(-1, keepdim=True)) / spread + x * torch.rsqrt(other + 1e-6)

    _, after = check(fuse, Norm(unbiased), torch.randn(2, 3, 8))
    assert not any("_norm" in line for line in after)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_approx": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": lambda x: x * torch.sigmoid(x),
    "softplus": functional.softplus,
    "relu": functional.relu,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(check: Any, name: str) -> None:
    class Activation(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return ACTIVATIONS[name](x)

    _, after = check(fuse, Activation(), 30 * torch.randn(3, 40))
    assert after == [f"%0 = {name}(x)"]


class Attention(nn.Module):
    def __init__(self, mask: Callable[[int], Tensor] | None) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        batch, heads, length, width = k.shape
        k = k[:, :, None].expand(batch, heads, 2, length, width)
        k = k.reshape(batch, heads * 2, length, width)
        mask = None if self.mask is None else self.mask(length)
        return functional.scaled_dot_product_attention(q, k, k, attn_mask=mask)


Q, K = torch.randn(2, 4, 5, 4), torch.randn(2, 2, 5, 4)


def test_repeated_heads_and_a_causal_mask(check: Any) -> None:
    module = Attention(lambda n: torch.arange(n) <= torch.arange(n)[:, None])
    _, after = check(fuse, module, Q, K)
    assert after == ["%0 = scaled_dot_product_attention(q, k, k, scale=0.5, mask='causal')"]


@pytest.mark.parametrize(
    "mask",
    [
        lambda n: torch.arange(n) < torch.arange(n)[:, None] + 2,
        lambda n: torch.ones(1, 1, dtype=torch.bool),
    ],
)
def test_other_masks_stay(check: Any, mask: Callable[[int], Tensor]) -> None:
    _, after = check(fuse, Attention(mask), Q, K)
    assert not any("causal" in line for line in after)


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_mask_of_dynamic_size_is_causal_if_it_is_for_every_size(check: Any, ahead: int) -> None:
    module = Attention(lambda n: torch.arange(n) <= torch.arange(n)[:, None] + ahead)
    length = torch.export.Dim("length", min=2, max=9)
    shapes = {"q": {2: length}, "k": {2: length}}
    _, after = check(fuse, module, Q, K, dynamic_shapes=shapes)
    assert any("causal" in line for line in after) == (ahead == 0)
    assert any("attention(q, k, k" in line for line in after)
