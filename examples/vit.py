"""A vision transformer that reads digits, in PyTorch and in MLX.

python examples/vit.py
"""

from __future__ import annotations

import mlx.core as mx
import torch
from torch import nn
from torch.nn import functional as F

import digits
import torch2mlx
from side_by_side import Run, compare, fit, load, picture, start, to_mlx


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a perceptron, each normalised before and added after."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """An image is worth 7 x 7 words (Dosovitskiy et al., 2021)."""

    def __init__(self, width: int = 48, depth: int = 4, heads: int = 4, patch: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.1 * torch.randn(1, 1 + (28 // patch) ** 2, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images `[batch, 1, 28, 28]` to scores `[batch, 10]`."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


def train(model: ViT, steps: int) -> None:
    """Classification of fresh digits."""

    def loss() -> torch.Tensor:
        x, labels = digits.draw(64)
        return F.cross_entropy(model(x), labels)

    fit(model, loss, steps, rate=2e-3)


def main(run: Run) -> None:
    """Train, convert, compare, show."""
    model = ViT()
    train(model, run.steps)
    images, labels = digits.draw(200)
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
    print(f"of 200 digits read: PyTorch {right:.1%}, MLX {mlx_right:.1%}")
    if run.picture:
        with picture(run.picture, 2, 8, (9.5, 2.4), []) as axes:
            for i in range(8):
                axes[0, i].imshow(images[i, 0], cmap="gray_r")
                axes[1, i].bar(torch.arange(10) - 0.2, chances[i], 0.4, label="PyTorch")
                axes[1, i].bar(torch.arange(10) + 0.2, mlx_chances[i], 0.4, label="MLX")
                axes[1, i].set(xticks=range(10), ylim=(0, 1.05))
                axes[1, i].tick_params(labelsize=6, length=0)
            axes[1, 0].legend(fontsize=6, frameon=False)


if __name__ == "__main__":
    with start(__file__, __doc__, steps=500) as run:
        main(run)
