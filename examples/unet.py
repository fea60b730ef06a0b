"""A U-Net that finds the shape in a cluttered picture, in PyTorch and in MLX.

python examples/unet.py
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

import shapes
import torch2mlx
from side_by_side import Run, compare, fit, load, picture, start, to_mlx


class DoubleConv(nn.Module):
    """Two convolutions, each with group normalisation."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm1 = nn.GroupNorm(4, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(4, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(x)))


class Up(nn.Module):
    """Twice the size, beside what the way down had at that size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.narrow = nn.Conv2d(inputs, outputs, 1)
        self.conv = DoubleConv(2 * outputs, outputs)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.cat([skip, self.narrow(self.up(x))], dim=1))


class UNet(nn.Module):
    """Convolutional networks for segmentation (Ronneberger et al., 2015)."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.enter = DoubleConv(3, width)
        self.down1 = DoubleConv(width, 2 * width)
        self.down2 = DoubleConv(2 * width, 4 * width)
        self.pool = nn.MaxPool2d(2)
        self.up1 = Up(4 * width, 2 * width)
        self.up2 = Up(2 * width, width)
        self.out = nn.Conv2d(width, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images `[batch, 3, height, width]` to a chance for each pixel."""
        fine = self.enter(x)
        middle = self.down1(self.pool(fine))
        coarse = self.down2(self.pool(middle))
        return torch.sigmoid(self.out(self.up2(self.up1(coarse, middle), fine)))


def train(model: UNet, steps: int) -> None:
    """Segmentation of fresh pictures."""

    def loss() -> torch.Tensor:
        x, _, mask = shapes.draw(16)
        return F.binary_cross_entropy(model(x), mask)

    fit(model, loss, steps, rate=5e-3)


def overlap(found: torch.Tensor, mask: torch.Tensor) -> float:
    """Intersection over union."""
    chosen, truth = found > 0.5, mask > 0.5
    return float((chosen & truth).sum() / (chosen | truth).sum())


def main(run: Run) -> None:
    """Train, convert, compare, show."""
    model = UNet()
    train(model, run.steps)
    images, _, masks = shapes.draw(24)
    torch2mlx.convert(
        model,
        run.folder,
        example_inputs=(images[:4],),
        dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
    )
    with torch.inference_mode():
        found = model(images)
    mlx_found = load(run.folder)(to_mlx(images))
    compare("chance of each pixel", found, mlx_found)

    shown = torch.tensor(mlx_found.tolist())
    print(f"overlap: PyTorch {overlap(found, masks):.2%}, MLX {overlap(shown, masks):.2%}")
    if run.picture:
        with picture(run.picture, 4, 10, (9.5, 4), []) as axes:
            rows = (images.permute(0, 2, 3, 1), masks[:, 0], found[:, 0], shown[:, 0])
            for row, values, name in zip(
                axes, rows, ("image", "truth", "PyTorch", "MLX"), strict=True
            ):
                row[0].set_ylabel(name, fontsize=9)
                for axis, value in zip(row, values, strict=False):
                    axis.imshow(value, cmap="gray", vmin=0, vmax=1)


if __name__ == "__main__":
    with start(__file__, __doc__, steps=400) as run:
        main(run)
