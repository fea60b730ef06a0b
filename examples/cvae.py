"""A convolutional variational autoencoder, in PyTorch and in MLX.

    python examples/cvae.py

Trains on drawn digits, converts two methods of the model, and shows what both frameworks
reconstruct, and what they draw from the same random codes.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

import digits
import torch2mlx
from side_by_side import Run, compare, fit, load, picture, start, to_mlx


class Encoder(nn.Module):
    """Images to the mean and the logarithmic variance of their codes."""

    def __init__(self, channels: int, latent: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(channels)
        self.norm2 = nn.BatchNorm2d(2 * channels)
        self.mean = nn.Linear(2 * channels * 7 * 7, latent)
        self.log_variance = nn.Linear(2 * channels * 7 * 7, latent)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.silu(self.norm1(self.conv1(x)))
        x = F.silu(self.norm2(self.conv2(x))).flatten(1)
        return self.mean(x), self.log_variance(x)


class Decoder(nn.Module):
    """Codes to images."""

    def __init__(self, channels: int, latent: int) -> None:
        super().__init__()
        self.project = nn.Linear(latent, 2 * channels * 7 * 7)
        self.up1 = nn.ConvTranspose2d(2 * channels, channels, 4, stride=2, padding=1)
        self.up2 = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(channels)
        self.norm2 = nn.BatchNorm2d(channels)
        self.out = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.project(z)).unflatten(1, (-1, 7, 7))
        x = F.silu(self.norm1(self.up1(x)))
        x = F.silu(self.norm2(self.up2(x)))
        return torch.sigmoid(self.out(x))


class CVAE(nn.Module):
    """In training the code is drawn; afterwards it is the mean."""

    def __init__(self, channels: int = 16, latent: int = 12) -> None:
        super().__init__()
        self.encoder = Encoder(channels, latent)
        self.decoder = Decoder(channels, latent)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean, log_variance = self.encoder(x)
        z = mean
        if self.training:
            z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return self.decode(z), mean, log_variance

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Images of codes."""
        images: torch.Tensor = self.decoder(z)
        return images


def train(model: CVAE, steps: int) -> None:
    """Maximise the evidence lower bound on batches of fresh digits."""

    def loss() -> torch.Tensor:
        x, _ = digits.draw(64)
        y, mean, log_variance = model(x)
        reconstruction = F.binary_cross_entropy(y, x, reduction="sum")
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum()
        return (reconstruction + divergence) / len(x)

    fit(model, loss, steps, rate=4e-3)


def main(run: Run) -> None:
    """Train, convert, compare, show."""
    model = CVAE()
    train(model, run.steps)
    images, _ = digits.draw(16)
    codes = torch.randn(16, 12)

    batch = torch.export.Dim("batch")
    torch2mlx.convert(
        model,
        run.folder,
        entry_points={"forward": (images[:4],), "decode": (codes[:4],)},
        dynamic_shapes={"forward": {"x": {0: batch}}, "decode": {"z": {0: batch}}},
    )
    with torch.inference_mode():
        rebuilt, mean, log_variance = model(images)
        drawn = model.decode(codes)
    mlx_model = load(run.folder)
    mlx_rebuilt, mlx_mean, mlx_log_variance = mlx_model(to_mlx(images))
    mlx_drawn = mlx_model.decode(to_mlx(codes))

    compare("reconstructions", rebuilt, mlx_rebuilt)
    compare("means", mean, mlx_mean)
    compare("logarithmic variances", log_variance, mlx_log_variance)
    compare("samples", drawn, mlx_drawn)
    if run.picture:
        titles = ["digits", "PyTorch rebuilds", "MLX rebuilds", "PyTorch samples", "MLX samples"]
        with picture(run.picture, 1, 5, (9.5, 2.2), titles) as axes:
            shown = (images, rebuilt, mlx_rebuilt, drawn, mlx_drawn)
            for axis, values in zip(axes.flat, shown, strict=True):
                tiles = torch.tensor(values.tolist()).view(4, 4, 28, 28)
                axis.imshow(tiles.transpose(1, 2).reshape(112, 112), cmap="gray_r", vmin=0, vmax=1)


if __name__ == "__main__":
    with start(__file__, __doc__, steps=600) as run:
        main(run)
