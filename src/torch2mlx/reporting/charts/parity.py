"""How far MLX is from PyTorch after every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from torch2mlx.reporting.charts.canvas import WIDTH, Canvas, Picture, Scale
from torch2mlx.reporting.numbers import scientific

__all__ = ["Series", "draw_parity"]

_LEFT, _RIGHT, _TOP, _BOTTOM, _HEIGHT = 48, 12, 34, 40, 270


@dataclass(frozen=True)
class Series:
    """One comparison.

    Attributes:
        name: of it.
        layers: (number of the layer, relative L2 difference; None: not finite).
        logits: at the end of the model.
        tolerance: bound on `logits`.
    """

    name: str
    layers: tuple[tuple[int, float | None], ...]
    logits: float | None
    tolerance: float


def draw_parity(series: Sequence[Series]) -> Picture | None:
    """The difference by layer on a logarithmic axis; None where no layer was compared."""
    series = [s for s in series if s.layers]
    if not series:
        return None
    values = [v for s in series for _, v in (*s.layers, (0, s.logits)) if v]
    limit = max(s.tolerance for s in series)
    low = min(min(values, default=limit), limit)
    high = max(max(values, default=limit), limit)
    y = Scale(10.0 ** floor(log10(low)), 10.0 ** ceil(log10(high) + 0.1),
              _HEIGHT - _BOTTOM, _TOP, log=True)  # fmt: skip
    last = max(number for s in series for number, _ in s.layers)
    x = Scale(0, last + 1.6, _LEFT + 8, WIDTH - _RIGHT - 8)
    canvas = Canvas(_HEIGHT)
    for tick in y.ticks(6):
        canvas.line(_LEFT, y(tick), WIDTH - _RIGHT, y(tick), "grid")
        canvas.text(_LEFT - 6, y(tick) + 4, scientific(tick), "tick", "end")
    canvas.line(_LEFT, y(limit), WIDTH - _RIGHT, y(limit), "limit")
    canvas.text(WIDTH - _RIGHT, y(limit) - 6, f"limit {scientific(limit)}", "limit-text", "end")
    for number in _numbers(last):
        canvas.text(x(number), _HEIGHT - _BOTTOM + 18, str(number), "tick", "middle")
    canvas.text(x(last + 1.6), _HEIGHT - _BOTTOM + 18, "logits", "tick", "end")
    canvas.text((_LEFT + WIDTH) / 2, _HEIGHT - 4, "layer", "tick", "middle")
    for index, one in enumerate(series[:3]):
        kind = f"s{index + 1}"
        places = [(x(n), y(v if v is not None else y.high)) for n, v in one.layers]
        if one.logits is not None:
            places.append((x(last + 1.6), y(one.logits or y.low)))
        if _dense(one, last):
            canvas.path(places, f"line {kind}")
        for (place_x, place_y), (number, value) in zip(places, one.layers, strict=False):
            tip = f"{one.name}, layer {number}: {scientific(value)}"
            _mark(canvas, index, place_x, place_y, kind, tip)
        if one.logits is not None:
            tip = f"{one.name}, logits: {scientific(one.logits)}"
            _mark(canvas, index, *places[-1], kind, tip)
        start = _LEFT + index * 130
        _mark(canvas, index, start + 5, 14, kind, "")
        canvas.text(start + 14, 18, one.name, "legend")
    worst = max(values, default=0.0)
    caption = (
        "Relative L2 difference of each layer's output, MLX against PyTorch, both in float32. "
        "Rounding errors add up from layer to layer; a wrong layer would stand out by orders of "
        "magnitude."
    )
    spoken = f"The largest difference is {scientific(worst)}; the limit is {scientific(limit)}."
    title = "Difference from PyTorch, layer by layer"
    rows = [
        (one.name, place, scientific(value, 3))
        for one in series
        for place, value in [*((f"layer {n}", v) for n, v in one.layers), ("logits", one.logits)]
    ]
    svg = canvas.render("parity", title, spoken)
    return Picture("parity", title, caption, svg, ("comparison", "place", "relative L2"),
                   tuple(rows))  # fmt: skip


def _mark(canvas: Canvas, index: int, x: float, y: float, kind: str, tip: str) -> None:
    """A disc, a square or a bar: series differ without colour too."""
    if index == 0:
        canvas.circle(x, y, 3.2, f"mark {kind}", tip)
    elif index == 1:
        canvas.rect(x - 2.6, y - 2.6, 5.2, 5.2, f"mark {kind}", tip)
    else:
        canvas.rect(x - 4, y - 1.4, 8, 2.8, f"mark {kind}", tip)


def _dense(series: Series, last: int) -> bool:
    """Whether all layers were compared; a line through a sample would invent the others."""
    return len(series.layers) > last


def _numbers(last: int) -> list[int]:
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if last / s <= 8)
    return [n for n in range(0, last + 1, step) if last + 1.6 - n > 0.09 * (last + 2)]
