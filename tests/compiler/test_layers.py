"""Which of torch's modules become layers of `mlx.nn`, and that these compute the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from torch2mlx.compiler.package import compile_module

CHANNELS = (2, 4, 6)


def image(dims: int) -> Tensor:
    return torch.randn(2, 4, *(6,) * dims)


LAYERS: dict[str, tuple[nn.Module, Tensor]] = {
    "ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1)": (
        nn.ConvTranspose1d(4, 6, 3, 2, 1, 1),
        image(1),
    ),
    "ConvTranspose2d(4, 6, (3, 2), stride=2, dilation=2, bias=False)": (
        nn.ConvTranspose2d(4, 6, (3, 2), 2, dilation=2, bias=False),
        image(2),
    ),
    "ConvTranspose3d(4, 6, 2, stride=2)": (nn.ConvTranspose3d(4, 6, 2, 2), image(3)),
    "GroupNorm(2, 4, pytorch_compatible=True)": (nn.GroupNorm(2, 4), image(2)),
    "InstanceNorm(4, affine=True)": (nn.InstanceNorm2d(4, affine=True), image(2)),
    "BatchNorm(4)": (nn.BatchNorm2d(4), image(2)),
    "MaxPool2d(3, 2, padding=1)": (nn.MaxPool2d(3, 2, 1), image(2)),
    "AvgPool1d(2, 2)": (nn.AvgPool1d(2), image(1)),
    "GELU(approx='tanh')": (nn.GELU("tanh"), image(1)),
    "LeakyReLU(negative_slope=0.2)": (nn.LeakyReLU(0.2), image(1)),
    "Tanh()": (nn.Tanh(), image(1)),
}


def compiled(module: nn.Module, x: Tensor, folder: Path) -> str:
    """Source of a module in a Sequential, once the gate has compared it with PyTorch."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.1)
    made = compile_module(nn.Sequential(module, nn.Dropout()).eval(), folder / "out", (x,))
    assert made.agreement.worst <= 1e-5
    return (made.folder / "model.py").read_text()


@pytest.mark.parametrize("expected", LAYERS)
def test_layers(expected: str, tmp_path: Path) -> None:
    source = compiled(*LAYERS[expected], tmp_path)
    assert f"[nn.{expected.replace(chr(39), chr(34))}]" in source


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "groups": lambda: nn.ConvTranspose2d(4, 4, 3, groups=2),
    "cropped beyond the kernel": lambda: nn.ConvTranspose2d(4, 4, 2, padding=2),
    "ceil": lambda: nn.MaxPool2d(4, 4, ceil_mode=True),
    "dilated": lambda: nn.MaxPool2d(2, 1, dilation=2),
    "uncounted padding": lambda: nn.AvgPool2d(2, 2, 1, count_include_pad=False),
    "a steep slope": lambda: nn.LeakyReLU(2.0),
}


@pytest.mark.parametrize("name", OTHERS)
def test_attributes_that_layers_do_not_have_stay_functions(name: str, tmp_path: Path) -> None:
    module = OTHERS[name]()
    source = compiled(module, image(2), tmp_path)
    assert f"nn.{type(module).__name__}(" not in source
