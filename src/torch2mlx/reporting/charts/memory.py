"""Resident memory while the folder was made."""

from __future__ import annotations

from itertools import pairwise

from torch2mlx.evidence.memory import MemoryRecord, Stage
from torch2mlx.reporting.charts.canvas import WIDTH, Canvas, Picture, Scale
from torch2mlx.reporting.numbers import cut, decimal
from torch2mlx.reporting.terminal import format_bytes

__all__ = ["draw_memory"]

_LEFT, _RIGHT, _TOP, _BOTTOM, _HEIGHT = 44, 10, 34, 40, 270
_MOST_STAGES = 12
_BOUNDED = "Converting"  # the stages that a memory limit holds for
_BOUNDED_MODULE = "Writing weights"


def draw_memory(memory: MemoryRecord) -> Picture | None:
    """Memory over time, the stages, and the limit where it holds; None without readings."""
    if len(memory.times) < 2 or len(memory.times) != len(memory.resident):
        return None
    end = memory.times[-1]
    stages = [s for s in memory.stages[:_MOST_STAGES] if s.end >= s.start]
    bounded = [s for s in stages if s.title in (_BOUNDED, _BOUNDED_MODULE)]
    top = max(*memory.resident, *(_ceiling(s, memory) for s in bounded), 1)
    x = Scale(0.0, end or 1.0, _LEFT, WIDTH - _RIGHT)
    y = Scale(0.0, 1.08 * top / 1e9, _HEIGHT - _BOTTOM, _TOP)
    canvas = Canvas(_HEIGHT)
    for number, stage in enumerate(stages, 1):
        kind = "band" if number % 2 else "band other"
        canvas.rect(x(stage.start), _TOP, x(stage.end) - x(stage.start), _HEIGHT - _BOTTOM - _TOP,
                    kind, stage.title)  # fmt: skip
    for tick in y.ticks(4):
        canvas.line(_LEFT, y(tick), WIDTH - _RIGHT, y(tick), "grid")
        canvas.text(_LEFT - 6, y(tick) + 4, f"{tick:g}", "tick", "end")
    canvas.text(_LEFT, 12, "GB", "tick", "end")
    points = list(zip(memory.times, memory.resident, strict=True))
    places = [(x(t), y(b / 1e9)) for t, b in points]
    ground = _HEIGHT - _BOTTOM
    canvas.path([(places[0][0], ground), *places, (places[-1][0], ground)], "area s1", close=True)
    canvas.path(places, "line s1")
    for stage in bounded:
        height = y(_ceiling(stage, memory) / 1e9)
        start, stop = x(stage.start), max(x(stage.end), x(stage.start) + 14)
        canvas.line(start, height, stop, height, "limit")
        side = "end" if stop > WIDTH - 70 else "start"
        canvas.text(stop if side == "end" else start, height - 6, "limit", "limit-text", side)
    _numbers(canvas, stages, x)
    for tick in x.ticks(6):
        canvas.text(x(tick), _HEIGHT - _BOTTOM + 18, f"{tick:g}", "tick", "middle")
    canvas.text((_LEFT + WIDTH) / 2, _HEIGHT - 4, "seconds", "tick", "middle")
    peak = max(memory.resident)
    caption = (
        f"Resident memory of the process; at most {format_bytes(peak)}. While weights are written, "
        f"the limit allows {format_bytes(memory.limit)} above what was there before. Stages: "
        + "; ".join(f"{i} {cut(s.title, 80)}" for i, s in enumerate(stages, 1))
        + "."
    )
    title = "Memory during the conversion"
    spoken = f"The peak is {format_bytes(peak)} in a run of {decimal(end)} seconds."
    rows = tuple(
        (s.title, f"{s.start:.1f}", f"{s.end:.1f}", format_bytes(_peak(points, s))) for s in stages
    )
    return Picture(
        "memory", title, caption, canvas.render("memory", title, spoken),
        ("stage", "from second", "to second", "most memory"), rows,
    )  # fmt: skip


def _ceiling(stage: Stage, memory: MemoryRecord) -> float:
    return stage.resident + memory.limit


def _peak(points: list[tuple[float, int]], stage: Stage) -> int:
    """The highest reading of a stage; of a short one, what was there when it began."""
    inside = [b for t, b in points if stage.start <= t <= stage.end]
    return max([*inside, stage.resident])


def _numbers(canvas: Canvas, stages: list[Stage], x: Scale) -> None:
    """Numbers of the stages above them, those left out that would lie on another."""
    middles = [(x(s.start) + x(s.end)) / 2 for s in stages]
    kept = [True] * len(middles)
    for i, (a, b) in enumerate(pairwise(middles)):
        kept[i + 1] = b - a >= 11 or not kept[i]
    for number, (middle, show) in enumerate(zip(middles, kept, strict=True), 1):
        if show:
            canvas.text(middle, _TOP - 6, str(number), "tick", "middle")
