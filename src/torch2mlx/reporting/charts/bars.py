"""Horizontal bars with their names above and their values at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch2mlx.reporting.charts.canvas import WIDTH, Canvas, Picture, Scale

__all__ = ["Bar", "draw_bars"]

_ROW, _BAR = 40, 14
_LETTER = 7.3  # width of a letter of a value


@dataclass(frozen=True)
class Bar:
    """One value.

    Attributes:
        label: what it is of.
        value: length of the bar, at least 0; None: not measured.
        text: the value as it is printed, or why there is none.
        kind: class of its colour: "s1" for MLX, "s2" for PyTorch, "s4" for others.
        spread: half the length of its whisker, in the value's unit.
        low, high: ends of a range that is marked on the bar.
    """

    label: str
    value: float | None
    text: str
    kind: str = "s1"
    spread: float = 0.0
    low: float | None = None
    high: float | None = None


def draw_bars(
    name: str, title: str, caption: str, bars: Sequence[Bar], header: tuple[str, str]
) -> Picture | None:
    """Bars from a common zero; None where there is no bar.

    Args:
        name: of the picture.
        title: of it.
        caption: what is shown.
        bars: from top to bottom.
        header: of the table's two columns.
    """
    if not bars:
        return None
    canvas = Canvas(len(bars) * _ROW + 4)
    highest = max(((b.value or 0.0) + b.spread for b in bars), default=0.0)
    longest = max((len(b.text) for b in bars if b.value is not None), default=0)
    x = Scale(0.0, highest or 1.0, 0.0, max(WIDTH - 12 - _LETTER * longest, WIDTH / 4))
    for row, bar in enumerate(bars):
        top = row * _ROW
        canvas.text(0, top + 13, bar.label, "label")
        end = x(bar.value) if bar.value is not None else 0.0
        if bar.value is not None:
            canvas.rect(0, top + 19, max(end, 1.0), _BAR, f"bar {bar.kind}", bar.text)
        if bar.spread:
            middle = top + 19 + _BAR / 2
            canvas.line(x((bar.value or 0) - bar.spread), middle, x((bar.value or 0) + bar.spread),
                        middle, "whisker")  # fmt: skip
        for edge in (bar.low, bar.high):
            if edge is not None and bar.low != bar.high:
                canvas.line(x(edge), top + 16, x(edge), top + 22 + _BAR, "whisker")
        after = max(end, x((bar.value or 0) + bar.spread), x(bar.high or 0)) + 8
        canvas.text(after if bar.value is not None else 0, top + 31, bar.text, "value")
    spoken = "; ".join(f"{b.label}: {b.text}" for b in bars[:12])
    rows = tuple((b.label, b.text) for b in bars)
    return Picture(name, title, caption, canvas.render(name, title, spoken), header, rows)
