"""Scales and offsets that are tuned by gradients, and layers whose matrices follow them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from torch2mlx.calibration.matching import match_rows
from torch2mlx.calibration.scratch import Overlay
from torch2mlx.dtypes import to_torch
from torch2mlx.planning.plan import Output
from torch2mlx.quantization.kernel import unpack_codes

if TYPE_CHECKING:
    import torch

    from torch2mlx.calibration.blocks import Block, Blocks

__all__ = ["Tuned", "TunedLayer", "stored_parts"]

_BETAS = (0.9, 0.95)  # of Adam


class Tuned:
    """The scales and offsets of one output, with Adam's moments.

    An element is (code - middle) * scale + level, so that both can be tuned apart.
    """

    def __init__(self, output: Output, parts: Mapping[str, torch.Tensor]) -> None:
        import torch

        assert output.scheme is not None
        self.output = output
        self.size = output.scheme.group_size
        self.middle = (2**output.scheme.bits - 1) / 2
        self.codes = parts["weight"]
        self.scale = parts["scales"].clone()
        self.level = parts["biases"] + self.scale * self.middle
        self.first_scale = self.scale.abs().clone()
        self.moments = [torch.zeros_like(self.scale) for _ in range(4)]
        self.slopes = [torch.zeros_like(self.scale) for _ in range(2)]

    @property
    def groups(self) -> tuple[int, int]:
        return (self.scale.shape[0], self.scale.shape[1])

    def values(self) -> torch.Tensor:
        """float32 [rows, in]."""
        shifted = self.codes.reshape(*self.groups, self.size) - self.middle
        values: torch.Tensor = shifted * self.scale[..., None] + self.level[..., None]
        return values.flatten(1)

    def add_gradient(self, gradient: torch.Tensor, rows: torch.Tensor) -> None:
        """Gradient [n, in] of the values of some rows."""
        grouped = gradient.reshape(len(rows), -1, self.size)
        shifted = self.codes[rows].reshape(grouped.shape) - self.middle
        self.slopes[0].index_add_(0, rows, (grouped * shifted).sum(-1))
        self.slopes[1].index_add_(0, rows, grouped.sum(-1))

    def step(self, rate: float, number: int) -> None:
        """One step of Adam, and the gradient forgotten."""
        bits = math.log2(2 * self.middle + 1)
        for i, (value, unit) in enumerate(
            ((self.scale, self.first_scale), (self.level, self.first_scale * self.middle))
        ):
            slope = self.slopes[i] * unit
            mean, square = self.moments[2 * i], self.moments[2 * i + 1]
            mean.lerp_(slope, 1 - _BETAS[0])
            square.lerp_(slope * slope, 1 - _BETAS[1])
            size = (square / (1 - _BETAS[1] ** number)).sqrt_().add_(1e-12)
            value -= rate * 2.0**-bits / (1 - _BETAS[0] ** number) * mean / size * unit
            self.slopes[i].zero_()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The written scales and biases by name."""
        import torch

        dtype = getattr(torch, self.output.expr.dtype.torch_name)
        scale = self.scale.to(dtype)
        bias = (self.level - scale.float() * self.middle).to(dtype)
        lead = self.output.expr.shape[:-1]
        module = self.output.module
        return {
            f"{module}.scales": scale.reshape(*lead, -1).cpu().contiguous(),
            f"{module}.biases": bias.reshape(*lead, -1).cpu().contiguous(),
        }

    def state(self) -> list[torch.Tensor]:
        """Everything that a later run needs to go on."""
        return [self.scale, self.level, *self.moments]


class TunedLayer:
    """A layer whose matrices follow tuned scales and offsets."""

    def __init__(
        self, blocks: Blocks, index: int, tuned: Mapping[str, Tuned], sample: torch.Tensor
    ) -> None:
        import torch

        self.block: Block = blocks.block(index, sample)
        for parameter in self.block.model.parameters():
            parameter.requires_grad_(False)
        outputs = [t.output for t in tuned.values()]
        found = match_rows(self.block.layer, outputs, blocks.reader)
        self.places: list[tuple[str, bool, list[tuple[Tuned, Any, Any]]]] = []
        for name, (owners, rows) in found.places.items():
            pieces = []
            for number in np.unique(owners[owners >= 0]):
                here = np.flatnonzero(owners == number)
                device = self.block.device
                pieces.append(
                    (
                        tuned[found.outputs[number].name],
                        torch.from_numpy(here).to(device),
                        torch.from_numpy(rows[here]).to(device),
                    )
                )
            owner = self.block.layer.get_submodule(name.rpartition(".")[0])
            self.places.append((name, type(owner).__name__ == "Conv1D", pieces))

    def fill(self) -> None:
        """Give the module its present values."""
        for name, turned, pieces in self.places:
            matrix = self._matrix(self.block.layer.get_parameter(name).data, turned)
            for tuned, here, rows in pieces:
                matrix[here] = tuned.values()[rows]

    def watch(self, on: bool) -> None:
        """Whether gradients of the matrices are computed."""
        for name, _, _ in self.places:
            parameter = self.block.layer.get_parameter(name)
            parameter.requires_grad_(on)
            parameter.grad = None

    def collect(self) -> None:
        """Hand the gradients on to scales and offsets."""
        for name, turned, pieces in self.places:
            gradient = self.block.layer.get_parameter(name).grad
            if gradient is None:
                continue
            matrix = self._matrix(gradient, turned)
            for tuned, here, rows in pieces:
                tuned.add_gradient(matrix[here], rows)

    @staticmethod
    def _matrix(values: torch.Tensor, turned: bool) -> torch.Tensor:
        return values.T if turned else values.view(-1, values.shape[-1])


def stored_parts(output: Output, source: Overlay, device: torch.device) -> dict[str, torch.Tensor]:
    """Codes (uint8), scales and biases (float32) of a calibrated output, as matrices."""
    import torch

    assert output.scheme is not None
    assert output.calibrated is not None
    found = {}
    for part, expr in output.calibrated.items():
        bits = source.read(expr.name)  # type: ignore[attr-defined]
        if part == "weight":
            codes = unpack_codes(bits, output.scheme.bits)
            found[part] = torch.from_numpy(codes.reshape(-1, codes.shape[-1])).to(device)
        else:
            values = to_torch(bits, expr.dtype).float()
            found[part] = values.reshape(-1, values.shape[-1]).to(device)
    return found
