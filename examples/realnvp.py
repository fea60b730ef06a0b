"""A normalizing flow (RealNVP) on two moons, in PyTorch and in MLX.

    python examples/realnvp.py

A flow is used in two directions: data to noise, which gives densities, and noise to data, which
gives samples.  Each direction becomes a model of its own.
"""

from __future__ import annotations

import math

import torch
from torch import nn

import torch2mlx
from side_by_side import Run, compare, fit, load, picture, start, to_mlx


def two_moons(count: int) -> torch.Tensor:
    """Points `[count, 2]` on two interlocking half circles, with noise."""
    angle = math.pi * torch.rand(count)
    upper = torch.stack([angle.cos(), angle.sin()], -1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], -1)
    moons = torch.where(torch.rand(count, 1) < 0.5, upper, lower)
    return moons - torch.tensor([0.5, 0.25]) + 0.05 * torch.randn(count, 2)


class Coupling(nn.Module):
    """Scales and shifts one coordinate by functions of the other."""

    mask: torch.Tensor

    def __init__(self, kept: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mask", nn.functional.one_hot(torch.tensor(kept), 2).float())
        self.network = nn.Sequential(
            nn.Linear(2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 4)
        )
        self.limit = nn.Parameter(torch.ones(2))

    def coefficients(self, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logarithm of the scale, and the shift, of the coordinate that is not kept."""
        scale, shift = self.network(kept).chunk(2, dim=-1)
        return self.limit * torch.tanh(scale) * (1 - self.mask), shift * (1 - self.mask)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale, shift = self.coefficients(x * self.mask)
        return x * scale.exp() + shift, scale.sum(-1)

    def inverse(self, z: torch.Tensor) -> torch.Tensor:
        """The x that forward maps to z."""
        scale, shift = self.coefficients(z * self.mask)
        return (z - shift) * (-scale).exp()


class RealNVP(nn.Module):
    """Density estimation with real-valued non-volume-preserving maps (Dinh et al., 2017)."""

    def __init__(self, layers: int = 8, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Coupling(i % 2, width) for i in range(layers))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Points `[batch, 2]` to noise, and the logarithm of the density there."""
        determinant = torch.zeros_like(x[:, 0])
        for layer in self.layers:
            x, volume = layer(x)
            determinant = determinant + volume
        return x, determinant - 0.5 * x.square().sum(-1) - math.log(2 * math.pi)

    def inverse(self, z: torch.Tensor) -> torch.Tensor:
        """Noise `[batch, 2]` to points."""
        for layer in reversed(self.layers):
            z = layer.inverse(z)
        return z


def main(run: Run) -> None:
    """Train, convert, compare both directions, show."""
    flow = RealNVP()
    fit(flow, lambda: -flow(two_moons(256))[1].mean(), run.steps, rate=3e-3)
    points, noise = two_moons(2000), torch.randn(2000, 2)
    ticks = torch.linspace(-2, 2, 80)
    plane = torch.cartesian_prod(ticks, ticks).flip(-1)

    batch = torch.export.Dim("batch")
    torch2mlx.convert(
        flow,
        run.folder,
        entry_points={"forward": (points[:8],), "inverse": (noise[:8],)},
        dynamic_shapes={"forward": {"x": {0: batch}}, "inverse": {"z": {0: batch}}},
    )
    with torch.inference_mode():
        codes, density = flow(points)
        samples = flow.inverse(noise)
        landscape = flow(plane)[1].exp()
    mlx_flow = load(run.folder)
    mlx_codes, mlx_density = mlx_flow(to_mlx(points))
    mlx_landscape = mlx_flow(to_mlx(plane))[1].exp()
    mlx_samples = mlx_flow.inverse(to_mlx(noise))

    compare("points to noise", codes, mlx_codes)
    compare("logarithm of the density", density, mlx_density)
    compare("density on a grid", landscape, mlx_landscape)
    compare("noise to points", samples, mlx_samples)
    if run.picture:
        titles = [
            "data", "PyTorch samples", "MLX samples", "PyTorch density", "MLX density",
        ]  # fmt: skip
        with picture(run.picture, 1, 5, (9.5, 2.2), titles) as axes:
            for axis, shown in zip(axes.flat, (points, samples, mlx_samples), strict=False):
                x, y = torch.tensor(shown.tolist()).T
                axis.scatter(x, y, s=0.6, c=to_colours(noise) if shown is not points else "black")
                axis.set(xlim=(-2, 2), ylim=(-2, 2), aspect="equal")
            for axis, shown in zip(axes.flat[3:], (landscape, mlx_landscape), strict=True):
                axis.imshow(torch.tensor(shown.tolist()).view(80, 80), origin="lower")


def to_colours(noise: torch.Tensor) -> torch.Tensor:
    """A number for each point's direction, to show where the noise goes."""
    return torch.atan2(noise[:, 1], noise[:, 0])


if __name__ == "__main__":
    with start(__file__, __doc__, steps=1500) as run:
        main(run)
