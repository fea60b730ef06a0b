"""Handwriting without a download: digits drawn as strokes, each a little different."""

from __future__ import annotations

import math
from itertools import pairwise

import torch

__all__ = ["draw"]

Points = list[tuple[float, float]]


def _arc(x: float, y: float, rx: float, ry: float, first: float, last: float) -> Points:
    """Twelve steps along an ellipse; degrees, clockwise from the right."""
    angles = [math.radians(first + (last - first) * i / 12) for i in range(13)]
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


# Strokes of each digit in the unit square, y downwards.
STROKES: list[list[Points]] = [
    [_arc(0.5, 0.5, 0.27, 0.4, -90, 270)],
    [[(0.36, 0.26), (0.53, 0.1), (0.53, 0.9)]],
    [[*_arc(0.5, 0.32, 0.25, 0.22, 180, 390), (0.25, 0.9), (0.78, 0.9)]],
    [_arc(0.46, 0.3, 0.24, 0.2, 200, 450), _arc(0.46, 0.7, 0.28, 0.2, 270, 510)],
    [[(0.62, 0.9), (0.62, 0.1), (0.2, 0.64), (0.82, 0.64)]],
    [[(0.75, 0.1), (0.33, 0.1), (0.3, 0.46), *_arc(0.48, 0.65, 0.26, 0.25, 235, 500)]],
    [[(0.66, 0.1), (0.42, 0.33), (0.27, 0.62)], _arc(0.5, 0.67, 0.24, 0.22, 180, 540)],
    [[(0.22, 0.1), (0.78, 0.1), (0.42, 0.9)]],
    [_arc(0.5, 0.3, 0.2, 0.19, 90, 450), _arc(0.5, 0.7, 0.25, 0.21, -90, 270)],
    [_arc(0.5, 0.33, 0.23, 0.22, 0, 360), [(0.73, 0.33), (0.71, 0.6), (0.6, 0.9)]],
]


def _segments() -> torch.Tensor:
    """Ends of the line segments of all digits, `[10, segments, 2, 2]`; short ones repeat."""
    digits = [[pair for stroke in strokes for pair in pairwise(stroke)] for strokes in STROKES]
    most = max(map(len, digits))
    return torch.tensor([(d * most)[:most] for d in digits]) - 0.5


def draw(count: int, size: int = 28) -> tuple[torch.Tensor, torch.Tensor]:
    """Images `[count, 1, size, size]` from 0 (paper) to 1 (ink), and which digit each shows."""
    labels = torch.randint(10, (count,))
    ends = _segments()[labels].flatten(1, 2)
    # Each writer's slant, proportions, position and tremor.
    angle, shear = 0.15 * torch.randn(2, count)
    width, height = 0.62 + 0.2 * torch.rand(2, count)
    cos, sin = angle.cos(), angle.sin()
    warp = torch.stack([cos * width, shear - sin * height, sin * width, cos * height], -1)
    phase, wave = 6.3 * torch.rand(count, 1, 2), 0.025 * torch.randn(count, 1, 2)
    ends = ends + wave * torch.sin(7 * ends.flip(-1) + phase)
    ends = ends @ warp.view(-1, 2, 2).mT + 0.04 * torch.randn(count, 1, 2)
    start, stop = ends.unflatten(1, (-1, 2)).unbind(2)
    along = stop - start
    # Distance of every pixel from the nearest segment.
    grid = (torch.arange(size) + 0.5) / size - 0.5
    pixels = torch.cartesian_prod(grid, grid).flip(-1)[None, :, None]
    offset = pixels - start[:, None]
    share = (offset * along[:, None]).sum(-1) / along.square().sum(-1)[:, None].clamp_min(1e-9)
    nearest = offset - share.clamp(0, 1)[..., None] * along[:, None]
    distance = nearest.norm(dim=-1).amin(-1)
    pen = 0.03 + 0.025 * torch.rand(count, 1)
    return torch.sigmoid((pen - distance) / 0.012).view(count, 1, size, size), labels
