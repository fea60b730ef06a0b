"""The report in short, as Markdown for a hub's page or a message."""

from __future__ import annotations

import re
from typing import Any

from torch2mlx.benchmarking.rows import Row, Spread
from torch2mlx.reporting.facts import Facts
from torch2mlx.reporting.figures import tiles
from torch2mlx.reporting.numbers import cut, decimal, scientific
from torch2mlx.reporting.terminal import format_bytes
from torch2mlx.reporting.usage import usages

__all__ = ["build_markdown"]

_MOST_OUTPUTS = 40


def build_markdown(facts: Facts) -> str:
    """The report of one folder."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # Markdown, no HTML: `cell` is the only way in for texts of the folder.
    environment = Environment(
        loader=PackageLoader("torch2mlx.reporting"),
        autoescape=False,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        cell=_cell,
        scientific=scientific,
        indented=lambda code: "\n".join(f"    {line}".rstrip() for line in code.split("\n")),
    )
    text = environment.get_template("report.md.jinja").render(
        facts=facts,
        verdict=facts.verdict,
        tiles=list(tiles(facts)),
        comparisons=facts.verified.comparisons[:_MOST_OUTPUTS],
        outputs=facts.evidence.outputs[:_MOST_OUTPUTS],
        speed=[_speed(r) for r in facts.benchmark.rows] if facts.benchmark is not None else [],
        usages=usages(facts),
    )
    return text.rstrip("\n") + "\n"


def _speed(row: Row) -> tuple[str, ...]:
    def figure(value: Spread | None) -> str:
        return "not measured" if value is None else decimal(value.median)

    peak = "not measured" if row.peak_bytes is None else format_bytes(row.peak_bytes.median)
    label = f"{row.engine}, {row.device}: {row.model.rstrip('/').rpartition('/')[2]}"
    figures = (row.decode_tps, row.prefill_tps, row.ttft_s, row.latency_s)
    return (label, *map(figure, figures), peak)


def _cell(text: Any) -> str:
    """Text as it is, in one line: nothing in it acts as Markdown, HTML or a table border."""
    return re.sub(r"([\\`*\[\]<>|#~])", r"\\\1", cut(str(text), 2000))
