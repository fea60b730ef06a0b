"""How the divergence from the original is spread over tokens."""

from __future__ import annotations

from torch2mlx.evidence.record import Divergence
from torch2mlx.reporting.charts.canvas import WIDTH, Canvas, Picture, Scale
from torch2mlx.reporting.numbers import decimal, scientific

__all__ = ["draw_histogram", "draw_positions"]

_LEFT, _RIGHT, _TOP, _BOTTOM, _HEIGHT = 44, 10, 26, 42, 240
_BUCKETS = 32  # positions that are drawn


def draw_histogram(divergence: Divergence, mean: float | None) -> Picture | None:
    """Tokens by their KL divergence, on a logarithmic axis; None where nothing was counted."""
    edges, counts = divergence.edges, divergence.counts
    if len(edges) != len(counts) + 1 or not sum(counts):
        return None
    used = [i for i, count in enumerate(counts) if count]
    first, last = used[0], used[-1]
    lowest = edges[1] / 10 ** (1 / 4) if first == 0 else edges[first]
    x = Scale(lowest, edges[last + 1], _LEFT, WIDTH - _RIGHT, log=True)
    y = Scale(0, max(counts), _HEIGHT - _BOTTOM, _TOP)
    canvas = Canvas(_HEIGHT)
    _rows(canvas, y)
    for i in range(first, last + 1):
        start, stop = x(max(edges[i], lowest)), x(edges[i + 1])
        tip = f"{counts[i]} tokens from {decimal(edges[i])} to {decimal(edges[i + 1])}"
        top = y(counts[i])
        canvas.rect(start + 0.5, top, stop - start - 1, _HEIGHT - _BOTTOM - top, "bar s1", tip)
    for tick in x.ticks(6):
        canvas.text(x(tick), _HEIGHT - _BOTTOM + 18, scientific(tick), "tick", "middle")
    canvas.text((_LEFT + WIDTH) / 2, _HEIGHT - 4, "KL divergence in nats", "tick", "middle")
    if mean:
        side = "end" if x(mean) > WIDTH / 2 else "start"
        canvas.line(x(mean), _TOP - 8, x(mean), _HEIGHT - _BOTTOM, "limit")
        shift = -5 if side == "end" else 5
        canvas.text(x(mean) + shift, _TOP - 8, f"mean {decimal(mean)}", "limit-text", side)
    tokens = sum(counts)
    caption = (
        f"{tokens:,} predicted tokens by how far the quantized model's prediction is from the "
        f"original's. Half are below {decimal(divergence.median)}, nine of ten below "
        f"{decimal(divergence.ninety)}, the largest is {decimal(divergence.largest)}."
    )
    title = "Divergence of predictions"
    rows = tuple(
        (decimal(edges[i]), decimal(edges[i + 1]), str(counts[i])) for i in range(first, last + 1)
    )
    svg = canvas.render("histogram", title, caption)
    return Picture("histogram", title, caption, svg, ("from", "to", "tokens"), rows)


def draw_positions(divergence: Divergence) -> Picture | None:
    """Mean divergence over the positions of a window; None for fewer than two."""
    known = [p for p in divergence.positions if p is not None]
    if len(known) < 2 or len(known) != len(divergence.positions):
        return None
    count = min(_BUCKETS, len(known))
    bounds = [round(i * len(known) / count) for i in range(count + 1)]
    parts = list(zip(bounds, bounds[1:], strict=False))
    means = [sum(known[a:b]) / (b - a) for a, b in parts]
    x = Scale(0, len(known), _LEFT, WIDTH - _RIGHT)
    y = Scale(0, max(means) or 1.0, _HEIGHT - _BOTTOM, _TOP)
    canvas = Canvas(_HEIGHT)
    _rows(canvas, y)
    places = [(x((a + b) / 2), y(m)) for (a, b), m in zip(parts, means, strict=True)]
    canvas.path(places, "line s1")
    for place, (a, b), mean in zip(places, parts, means, strict=True):
        canvas.circle(*place, 2.6, "mark s1", f"positions {a} to {b - 1}: {decimal(mean)}")
    for tick in x.ticks(6):
        canvas.text(x(tick), _HEIGHT - _BOTTOM + 18, f"{tick:.0f}", "tick", "middle")
    canvas.text((_LEFT + WIDTH) / 2, _HEIGHT - 4, "position in the window", "tick", "middle")
    windows = ", ".join(decimal(w) for w in divergence.windows[:32])
    caption = (
        "Mean KL divergence by the length of the text before the token: it should not rise. "
        f"Mean of each window: {windows}."
    )
    title = "Divergence along the text"
    svg = canvas.render("positions", title, caption)
    rows = tuple((f"{a} to {b - 1}", decimal(m)) for (a, b), m in zip(parts, means, strict=True))
    return Picture("positions", title, caption, svg, ("positions", "mean KL, nats"), rows)


def _rows(canvas: Canvas, y: Scale) -> None:
    for tick in y.ticks(5):
        canvas.line(_LEFT, y(tick), WIDTH - _RIGHT, y(tick), "grid")
        canvas.text(_LEFT - 6, y(tick) + 4, f"{tick:g}", "tick", "end")
