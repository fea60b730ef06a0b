"""Pictures of a report: SVG that scales, prints, follows light and dark, and has a table."""

from __future__ import annotations

from torch2mlx.reporting.charts.bars import Bar, draw_bars
from torch2mlx.reporting.charts.canvas import Picture
from torch2mlx.reporting.charts.distribution import draw_histogram, draw_positions
from torch2mlx.reporting.charts.heatmap import draw_heatmap
from torch2mlx.reporting.charts.memory import draw_memory
from torch2mlx.reporting.charts.parity import Series, draw_parity
from torch2mlx.reporting.charts.tradeoff import Point, draw_tradeoff, pareto

__all__ = [
    "Bar",
    "Picture",
    "Point",
    "Series",
    "draw_bars",
    "draw_heatmap",
    "draw_histogram",
    "draw_memory",
    "draw_parity",
    "draw_positions",
    "draw_tradeoff",
    "pareto",
]
