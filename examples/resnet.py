"""A residual network that names shapes, in PyTorch and in MLX.

python examples/resnet.py
"""

from __future__ import annotations

import mlx.core as mx
import torch
from torch import nn
from torch.nn import functional as F

import shapes
import torch2mlx
from side_by_side import Run, compare, fit, load, picture, start, to_mlx


class BasicBlock(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Deep residual learning (He et al., 2016), at the size of a thumbnail."""

    def __init__(self, width: int = 16, classes: int = len(shapes.NAMES)) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.stage1 = nn.Sequential(BasicBlock(width, width, 2), BasicBlock(width, width, 1))
        self.stage2 = nn.Sequential(
            BasicBlock(width, 2 * width, 2), BasicBlock(2 * width, 2 * width, 1)
        )
        self.stage3 = nn.Sequential(
            BasicBlock(2 * width, 4 * width, 2), BasicBlock(4 * width, 4 * width, 1)
        )
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images `[batch, 3, 32, 32]` to scores `[batch, classes]`."""
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def train(model: ResNet, steps: int) -> None:
    """Classification of fresh pictures."""

    def loss() -> torch.Tensor:
        x, labels, _ = shapes.draw(64)
        return F.cross_entropy(model(x), labels)

    fit(model, loss, steps, rate=5e-3)


def main(run: Run) -> None:
    """Train, convert, compare, show."""
    model = ResNet()
    train(model, run.steps)
    images, labels, _ = shapes.draw(200)
    torch2mlx.convert(
        model,
        run.folder,
        example_inputs=(images[:4],),
        dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
    )
    with torch.inference_mode():
        scores = model(images)
    mlx_scores = load(run.folder)(to_mlx(images))
    compare("scores", scores, mlx_scores)

    chances, mlx_chances = scores.softmax(-1), torch.tensor(mx.softmax(mlx_scores, -1).tolist())
    right = (chances.argmax(-1) == labels).float().mean()
    mlx_right = (mlx_chances.argmax(-1) == labels).float().mean()
    print(f"of 200 shapes named: PyTorch {right:.1%}, MLX {mlx_right:.1%}")
    if run.picture:
        with picture(run.picture, 1, 8, (9.5, 1.9), []) as axes:
            for axis, image, torch_row, mlx_row in zip(
                axes.flat, images, chances, mlx_chances, strict=False
            ):
                axis.imshow(image.permute(1, 2, 0))
                answers = [
                    f"{name}: {shapes.NAMES[int(row.argmax())]} {row.max():.2%}"
                    for name, row in (("PyTorch", torch_row), ("MLX", mlx_row))
                ]
                axis.set_xlabel("\n".join(answers), fontsize=6)


if __name__ == "__main__":
    with start(__file__, __doc__, steps=300) as run:
        main(run)
