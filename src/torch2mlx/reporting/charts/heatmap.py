"""What rounding changed, by layer and kind of module."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch2mlx.evidence.record import ModuleRecord
from torch2mlx.reporting.charts.canvas import WIDTH, Canvas, Picture, Scale
from torch2mlx.reporting.numbers import cut, decimal

__all__ = ["draw_heatmap", "place_of"]

_STEPS = 8  # colours
_LEFT, _TOP = 34, 92
_MOST_COLUMNS, _MOST_ROWS = 26, 200
_NUMBERED = re.compile(r"(.*?)(?:^|\.)(\d+)\.(.+)")
_TITLE = "Quantization error, layer by layer"


def place_of(name: str) -> tuple[str, int, str] | None:
    """Stack, number of the layer and rest of a module's path; None outside of layers."""
    found = _NUMBERED.fullmatch(name)
    return (found[1], int(found[2]), found[3]) if found and len(found[2]) < 5 else None


def draw_heatmap(modules: Sequence[ModuleRecord]) -> Picture | None:
    """Relative error of every weight: layers downwards, modules across.

    None where nothing was rounded, or the modules are no grid (few layers, no two of them alike).
    """
    rounded = [m for m in modules if m.rms]
    places = [(place, m) for m in rounded if (place := place_of(m.name)) is not None]
    columns = list(dict.fromkeys(place[2] for place, _ in places))
    rows = sorted({place[:2] for place, _ in places})
    if not _is_grid(len(rows), len(columns), len(places)):
        return None
    errors = {(place[:2], place[2]): m.rms or 0.0 for place, m in places}
    low, high = min(errors.values()), max(errors.values())
    shade = Scale(low, high, 0, _STEPS - 1)
    width = min(46.0, (WIDTH - _LEFT) / len(columns))
    height = max(5.0, min(13.0, 420 / len(rows)))
    bottom = _TOP + height * len(rows)
    canvas = Canvas(bottom + 44)
    for number, column in enumerate(columns):
        middle = _LEFT + (number + 0.5) * width
        canvas.text(middle + 4, _TOP - 6, cut(_short(column), 18), "tick", "start", -52)
    labelled = max(1, round(16 / height))
    for number, row in enumerate(rows):
        y = _TOP + number * height
        if number % labelled == 0:
            canvas.text(_LEFT - 6, y + height / 2 + 4, str(row[1]), "tick", "end")
        for index, column in enumerate(columns):
            if (row, column) in errors:
                value = errors[row, column]
                canvas.rect(
                    _LEFT + index * width, y, width - 1, height - 1,
                    f"h{round(shade(value))}", f"{row[0]}.{row[1]}.{column}: {decimal(value)}",
                )  # fmt: skip
    _legend(canvas, bottom + 14, low, high)
    worst = max(rounded, key=lambda m: m.rms or 0.0)
    caption = (
        "‖written − source‖ / ‖source‖ of each weight matrix. The stronger the colour, the larger "
        "the error. "
        f"Largest: {cut(worst.name, 80)}, {decimal(worst.rms)}."
    )
    spoken = f"Between {decimal(low)} and {decimal(high)}; the largest is at {worst.name}."
    table = tuple((m.name, m.kind, decimal(m.rms), decimal(m.largest)) for m in rounded)
    return Picture(
        "heatmap", _TITLE, caption, canvas.render("heatmap", _TITLE, spoken),
        ("module", "kind", "relative error", "largest difference"), table,
    )  # fmt: skip


def _is_grid(rows: int, columns: int, cells: int) -> bool:
    fits = 2 <= rows <= _MOST_ROWS and 0 < columns <= _MOST_COLUMNS
    return fits and cells >= 0.3 * rows * columns


def _short(column: str) -> str:
    """`self_attn.q_proj` → `q_proj`; experts keep what they are of."""
    parts = column.split(".")
    return parts[-1] if len(parts) < 3 else ".".join(parts[-2:])


def _legend(canvas: Canvas, y: float, low: float, high: float) -> None:
    start, width = _LEFT, 150.0
    for step in range(_STEPS):
        canvas.rect(start + step * width / _STEPS, y, width / _STEPS, 9, f"h{step}")
    canvas.text(start, y + 24, decimal(low), "tick")
    canvas.text(start + width, y + 24, decimal(high), "tick", "end")
