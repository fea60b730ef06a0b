"""Pictures without a download: coloured shapes on a cluttered ground."""

from __future__ import annotations

import math

import torch

__all__ = ["NAMES", "draw"]

NAMES = ("circle", "square", "triangle", "star", "cross", "ring")


def _distance(kind: int, p: torch.Tensor) -> torch.Tensor:
    """Roughly how far points `[..., 2]` lie outside a shape of radius one (inside: negative)."""
    radius = p.norm(dim=-1)
    largest = p.abs().amax(-1)
    match NAMES[kind]:
        case "circle":
            return radius - 0.9
        case "square":
            return largest - 0.75
        case "triangle":
            angles = [math.pi / 2 + i * 2 * math.pi / 3 for i in range(3)]
            return (
                torch.stack(
                    [p[..., 0] * math.cos(a) + p[..., 1] * math.sin(a) for a in angles]
                ).amax(0)
                - 0.5
            )
        case "star":
            return radius - 0.7 - 0.3 * torch.cos(5 * torch.atan2(p[..., 1], p[..., 0]))
        case "cross":
            return torch.maximum(p.abs().amin(-1) - 0.28, largest - 0.9)
        case _:
            return (radius - 0.7).abs() - 0.2


def draw(count: int, size: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images `[count, 3, size, size]` in 0 to 1, what each shows, and where: masks of 0 and 1."""
    labels = torch.randint(len(NAMES), (count,))
    ticks = (torch.arange(size) + 0.5) / size * 2 - 1
    grid = torch.cartesian_prod(ticks, ticks).flip(-1)
    angle = 6.3 * torch.rand(count)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).view(-1, 2, 2)
    scale = 0.45 + 0.25 * torch.rand(count, 1, 1)
    points = (grid - 0.5 * torch.rand(count, 1, 2) + 0.25) @ turn / scale
    outside = torch.stack([_distance(k, points) for k in range(len(NAMES))])
    outside = outside[labels, torch.arange(count)].view(count, 1, size, size)
    cover = torch.sigmoid(-outside / 0.06)
    # Ground and shape each have a colour; waves and noise lie over both.
    ground, colour = torch.rand(2, count, 3, 1, 1)
    colour = torch.where((colour - ground).abs().amax(1, keepdim=True) < 0.4, 1 - ground, colour)
    waves = torch.sin(grid @ (6 * torch.randn(count, 2, 3)) + 6.3 * torch.rand(count, 1, 3))
    texture = 0.12 * waves.mT.view(count, 3, size, size) + 0.08 * torch.randn(count, 3, size, size)
    return (cover * colour + (1 - cover) * ground + texture).clamp(0, 1), labels, cover.round()
