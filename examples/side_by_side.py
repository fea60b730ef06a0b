"""What the examples share: their options, the comparison and the look of the pictures."""

from __future__ import annotations

import argparse
import contextlib
import io
import runpy
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from torch import nn

import torch2mlx

__all__ = ["Run", "compare", "fit", "load", "picture", "start", "to_mlx"]

LIMIT = 1e-4
IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"


@dataclass(frozen=True)
class Run:
    """How an example was called.

    Attributes:
        steps: of training.
        folder: where the generated code goes.
        picture: file of the picture, or None.
    """

    steps: int
    folder: Path
    picture: Path | None


@contextlib.contextmanager
def start(file: str, description: str, steps: int) -> Iterator[Run]:
    """Read the command line; what --out does not keep is removed at the end."""
    name = Path(file).stem
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--steps", type=int, default=steps, help="of training")
    parser.add_argument("--out", type=Path, help="new folder to keep the generated code in")
    parser.add_argument("--picture", type=Path, default=IMAGES / f"{name}.png")
    parser.add_argument("--no-picture", action="store_true", help="needs no matplotlib")
    given = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        picture = None if given.no_picture else given.picture
        try:
            yield Run(given.steps, given.out or Path(scratch) / name, picture)
        except torch2mlx.Torch2MLXError as error:
            sys.exit(f"error: {error}")


def fit(module: nn.Module, loss: Callable[[], torch.Tensor], steps: int, rate: float) -> None:
    """Minimise a loss, which draws its own data, by AdamW; leaves the module in eval mode."""
    optimizer = torch.optim.AdamW(module.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1)
    module.train()
    for step in range(1, steps + 1):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % max(1, steps // 5) == 0:
            print(f"step {step:5d}  loss {value.item():.4f}", flush=True)
    module.eval()


def load(folder: Path) -> Any:
    """The generated model of a folder.

    A program that has one model says `from model import load`; here there are several.
    """
    return runpy.run_path(str(folder / "model.py"))["load"](folder)


def to_mlx(tensor: torch.Tensor) -> mx.array:
    """The same numbers for MLX."""
    return mx.array(tensor.detach().numpy())


def compare(what: str, expected: torch.Tensor, found: mx.array) -> None:
    """Print the relative L2 distance of an output; end the program if it is above 1e-4."""
    left, right = expected.detach().numpy(), np.array(found)
    if left.shape != right.shape:
        sys.exit(f"{what}: PyTorch {left.shape}, MLX {right.shape}")
    distance = float(np.linalg.norm(left - right) / np.linalg.norm(left))
    print(f"{what:<28} {'x'.join(map(str, left.shape)):<16} relative L2 {distance:.1e}")
    if not distance <= LIMIT:  # a NaN is no agreement
        sys.exit(f"{what}: MLX differs from PyTorch by more than {LIMIT}")


@contextlib.contextmanager
def picture(
    file: Path, rows: int, columns: int, size: tuple[float, float], titles: Sequence[str]
) -> Iterator[Any]:
    """A grid of axes without ticks, saved when the block ends."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis, title in zip(axes.flat, titles, strict=False):
        axis.set_title(title, fontsize=9)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    yield axes
    file.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110)
    plt.close(figure)
    # A palette makes the file a third as large.
    Image.open(drawn).convert("RGB").quantize(256).save(file, optimize=True)
    print(f"picture: {file}")
