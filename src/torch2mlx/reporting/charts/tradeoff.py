"""Quality against size of several conversions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch2mlx.reporting.charts.canvas import WIDTH, Canvas, Picture, Scale
from torch2mlx.reporting.numbers import cut, decimal
from torch2mlx.reporting.terminal import format_bytes

__all__ = ["Point", "draw_tradeoff", "pareto"]

_LEFT, _RIGHT, _TOP, _BOTTOM, _HEIGHT = 48, 22, 20, 42, 320
_ROOM = 1.55  # of the largest size, for a name of 24 letters beside it


@dataclass(frozen=True)
class Point:
    """One conversion.

    Attributes:
        label: its name.
        nbytes: of its weights.
        divergence: mean KL divergence from the original in nats a token.
    """

    label: str
    nbytes: float
    divergence: float


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both size and divergence, the smallest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.nbytes, p.divergence)):
        if not best or point.divergence < best[-1].divergence:
            best.append(point)
    return best


def draw_tradeoff(points: Sequence[Point]) -> Picture | None:
    """Divergence over size with the Pareto front; None for fewer than two points."""
    if len(points) < 2:
        return None
    unit, name = (1e9, "GB") if max(p.nbytes for p in points) >= 1e9 else (1e6, "MB")
    high = max(p.nbytes for p in points) / unit
    # Names stand to the right of their points: the front comes from the upper left.
    x = Scale(0.0, high * _ROOM, _LEFT, WIDTH - _RIGHT)
    y = Scale(0.0, max(p.divergence for p in points) * 1.08 or 1.0, _HEIGHT - _BOTTOM, _TOP)
    canvas = Canvas(_HEIGHT)
    for tick in y.ticks(5):
        canvas.line(_LEFT, y(tick), WIDTH - _RIGHT, y(tick), "grid")
        canvas.text(_LEFT - 6, y(tick) + 4, f"{tick:g}", "tick", "end")
    for tick in x.ticks(6):
        canvas.text(x(tick), _HEIGHT - _BOTTOM + 18, f"{tick:g}", "tick", "middle")
    canvas.text(
        (_LEFT + WIDTH) / 2, _HEIGHT - 4, f"size of the weights in {name}", "tick", "middle"
    )
    front = pareto(points)
    if len(front) > 1:
        canvas.path([(x(p.nbytes / unit), y(p.divergence)) for p in front], "line front")
    taken: list[tuple[float, float]] = []
    for point in points:
        place = (x(point.nbytes / unit), y(point.divergence))
        kind = "mark s1" if point in front else "mark s4"
        tip = f"{point.label}: {format_bytes(point.nbytes)}, {decimal(point.divergence)} nats"
        if point in front:
            canvas.circle(*place, 5.0, kind, tip)
        else:
            canvas.rect(place[0] - 4, place[1] - 4, 8, 8, kind, tip)
        below = place[1] - 8
        while any(abs(below - b) < 13 and abs(place[0] - a) < 150 for a, b in taken):
            below += 13
        taken.append((place[0], below))
        canvas.text(place[0] + 9, below + 4, cut(point.label, 24), "label")
    caption = (
        "Mean KL divergence from the original in nats a token, against the size of the weights: "
        "down and to the left is better. The line joins the conversions that no other one beats "
        "in both."
    )
    title = "Quality against size"
    rows = tuple(
        (p.label, format_bytes(p.nbytes), decimal(p.divergence), "yes" if p in front else "no")
        for p in points
    )
    spoken = "; ".join(f"{r[0]}: {r[1]}, {r[2]} nats" for r in rows[:12])
    return Picture(
        "tradeoff", title, caption, canvas.render("tradeoff", title, spoken),
        ("conversion", "weights", "mean KL, nats", "on the front"), rows,
    )  # fmt: skip
