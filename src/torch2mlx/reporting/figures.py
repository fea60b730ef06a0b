"""The pictures of one folder, and the tiles above them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf

from torch2mlx.benchmarking.rows import Row, Spread
from torch2mlx.evidence.record import ModuleRecord, OutputRecord
from torch2mlx.reporting.charts import (
    Bar,
    Picture,
    Series,
    draw_bars,
    draw_heatmap,
    draw_histogram,
    draw_memory,
    draw_parity,
    draw_positions,
)
from torch2mlx.reporting.charts.heatmap import place_of
from torch2mlx.reporting.facts import Facts, Part
from torch2mlx.reporting.numbers import cut, decimal, percent, scientific
from torch2mlx.reporting.terminal import format_bytes

__all__ = ["Tile", "cost_pictures", "error_pictures", "parity_pictures", "speed_pictures", "tiles"]

_LAYER = re.compile(r"layer (\d{1,5})")
_MOST_BARS = 24
_MOST_OUTPUTS = 8


@dataclass(frozen=True)
class Tile:
    """A figure to be read at a glance."""

    label: str
    value: str
    note: str = ""


def tiles(facts: Facts) -> Iterator[Tile]:
    """The figures that matter most."""
    source = facts.source_size
    smaller = ""
    if source and facts.size and source / facts.size > 1.005:
        smaller = f"{source / facts.size:.3g} × smaller than the source"
    yield Tile("Weights", format_bytes(facts.size), smaller)
    yield Tile("Bits a weight", decimal(facts.bits, 3), "measured on the files, scales included")
    worst, limit = facts.verified.worst
    if facts.verified.ran:
        yield Tile("Difference from PyTorch", scientific(worst), f"limit {scientific(limit)}")
    cost = facts.verified.cost("quantization")
    if "mean_kl" in cost:
        yield Tile("Mean KL divergence", decimal(cost["mean_kl"]), "nats a token, by quantization")
        yield Tile("Same next token", percent(cost.get("top1")), "of the positions")
    peak = facts.manifest.measured.get("peak_rss_bytes")
    if peak:
        yield Tile("Memory to convert", format_bytes(peak), "at most, with the comparison")


def parity_pictures(facts: Facts) -> list[Picture]:
    """Layer by layer for a checkpoint, output by output for a module."""
    found = [draw_parity(_series(facts.verified.comparisons)), _outputs(facts.evidence.outputs)]
    return [picture for picture in found if picture is not None]


def _outputs(outputs: Sequence[OutputRecord]) -> Picture | None:
    """A bar for each output, or for the worst of each input where there are many."""
    shown = list(outputs)
    caption = "Relative L2 error of every output on every input, PyTorch's as the reference."
    if len(shown) > _MOST_OUTPUTS:
        worst: dict[str, OutputRecord] = {}
        for output in shown:
            known = worst.setdefault(output.case, output)
            worst[output.case] = max(known, output, key=_error)
        shown = list(worst.values())
        caption = (
            "Relative L2 error of the worst output on every input, PyTorch's as the reference; "
            "the table has all outputs."
        )
    rows = [
        (f"{cut(o.case, 120)}: {cut(o.name, 20)}", f"{scientific(o.relative)} of "
         f"{scientific(o.limit)}")
        for o in outputs
    ]  # fmt: skip
    bars = [
        Bar(cut(f"{o.case}: {o.name}", 52), o.relative,
            f"{scientific(o.relative)} of {scientific(o.limit)}")
        for o in shown[:_MOST_BARS]
    ]  # fmt: skip
    picture = draw_bars("outputs", "Outputs compared", caption, bars, ("output", "error and limit"))
    return None if picture is None else replace(picture, rows=tuple(rows))


def _error(output: OutputRecord) -> float:
    """None, which is no number, is the worst."""
    return inf if output.relative is None else output.relative


def error_pictures(facts: Facts) -> list[Picture]:
    """What rounding changed in the weights and in the predictions."""
    modules = facts.evidence.modules
    found = [draw_heatmap(modules), _bits(modules), _largest(modules)]
    divergence = facts.evidence.divergence
    if divergence is not None:
        mean = facts.verified.cost("quantization").get("mean_kl")
        found += [draw_histogram(divergence, mean), draw_positions(divergence)]
    return [picture for picture in found if picture is not None]


def cost_pictures(facts: Facts) -> list[Picture]:
    """Size, memory and time."""
    memory = facts.evidence.memory
    found = [_sizes(facts), draw_memory(memory) if memory is not None else None, _times(facts)]
    return [picture for picture in found if picture is not None]


def speed_pictures(facts: Facts) -> list[Picture]:
    """What `torch2mlx bench` measured, a picture for each figure."""
    if facts.benchmark is None:
        return []
    rows = facts.benchmark.rows[:_MOST_BARS]
    figures = (
        ("decode_tps", "Generating", "Tokens a second after the first; higher is better.",
         "tokens/s"),
        ("prefill_tps", "Reading a prompt", "Tokens a second of prompts; higher is better.",
         "tokens/s"),
        ("ttft_s", "Time to the first token", "Seconds; lower is better.", "s"),
        ("latency_s", "Time of a call", "Seconds; lower is better.", "s"),
        ("load_s", "Time to load", "Seconds; lower is better.", "s"),
        ("peak_bytes", "Memory while running", "The most that was held; lower is better.", "bytes"),
        ("energy_j", "Energy", "Joules for all prompts; lower is better.", "J"),
    )  # fmt: skip
    found = []
    for name, title, caption, unit in figures:
        if all(getattr(row, name) is None for row in rows):
            continue
        bars = [_speed_bar(row, name, unit) for row in rows]
        whiskers = "" if unit == "bytes" else " The whisker spans the repeats."
        found.append(
            draw_bars(name.replace("_", "-"), title, caption + whiskers, bars, ("run", "median"))
        )
    return [picture for picture in found if picture is not None]


def _series(parts: tuple[Part, ...]) -> list[Series]:
    """Comparisons of whole models one by one, those of single layers as one series."""
    whole: list[Series] = []
    sampled: list[tuple[int, float | None]] = []
    tolerance = 0.0
    for part in parts:
        layers = tuple(
            (int(found[1]), layer.relative)
            for layer in part.layers
            if (found := _LAYER.fullmatch(layer.place))
        )
        if _LAYER.match(part.part):
            sampled += layers
            tolerance = max(tolerance, part.tolerance)
        elif part.part != "twin":  # its layers are those of another, tiny model
            whole.append(Series(part.part, layers, part.logits.relative, part.tolerance))
    if sampled:
        unique = tuple(sorted(dict(sampled).items()))
        whole.append(Series("sampled layers", unique, None, tolerance))
    return whole


def _bits(modules: tuple[ModuleRecord, ...]) -> Picture | None:
    """Bits a weight by kind of module: mean, and the range where layers differ."""
    groups: dict[str, list[ModuleRecord]] = {}
    for module in modules:
        place = place_of(module.name)
        groups.setdefault(place[2] if place else module.name, []).append(module)
    if not groups or not any(m.kind in ("quantized", "calibrated", "repacked") for m in modules):
        return None
    bars = []
    for name, members in list(groups.items())[:_MOST_BARS]:
        elements = sum(m.elements for m in members)
        if not elements:
            continue
        mean = 8 * sum(m.nbytes for m in members) / elements
        each = [8 * m.nbytes / m.elements for m in members if m.elements]
        low, high = min(each), max(each)
        text = f"{mean:.2f}" if high - low < 0.005 else f"{mean:.2f} ({low:.3g} – {high:.3g})"
        count = f" × {len(members)}" if len(members) > 1 else ""
        bars.append(Bar(f"{cut(name, 44)}{count}", mean, text, low=low, high=high))
    caption = (
        "Bits on the disk for each weight, scales and biases included, by kind of module. Ticks "
        "mark the smallest and the largest where layers differ."
    )
    return draw_bars("bits", "Bits by module", caption, bars, ("module", "bits a weight"))


def _largest(modules: tuple[ModuleRecord, ...]) -> Picture | None:
    """The largest errors, for models whose modules are no grid."""
    rounded = sorted((m for m in modules if m.rms), key=lambda m: -(m.rms or 0.0))
    if not rounded or draw_heatmap(modules) is not None:
        return None
    bars = [Bar(cut(m.name, 48), m.rms, decimal(m.rms)) for m in rounded[:12]]
    caption = "‖written − source‖ / ‖source‖, the twelve largest."
    return draw_bars("errors", "Rounding error by module", caption, bars, ("module", "error"))


def _sizes(facts: Facts) -> Picture | None:
    bars = []
    if facts.source_size:
        bars.append(
            Bar("source, weight files", facts.source_size, format_bytes(facts.source_size), "s2")
        )
    bars.append(Bar("this folder, weights", facts.size, format_bytes(facts.size)))
    peak = facts.manifest.measured.get("peak_rss_bytes")
    if peak:
        text = format_bytes(peak)
        bars.append(Bar("memory to convert and compare, at most", peak, text, "s4"))
    for row in facts.benchmark.rows if facts.benchmark is not None else ():
        if row.peak_bytes is not None:
            bars.append(_speed_bar(row, "peak_bytes", "bytes"))
    caption = "On the disk, and in memory where that was measured."
    return draw_bars("sizes", "Size and memory", caption, bars[:_MOST_BARS], ("what", "bytes"))


def _times(facts: Facts) -> Picture | None:
    measured = facts.manifest.measured
    names = {
        "plan_wall_s": "plan, prove the port",
        "allocate_wall_s": "allocate bits",
        "calibrate_wall_s": "calibrate",
        "convert_wall_s": "write the weights",
        "package_wall_s": "tokenizer and config",
        "verify_wall_s": "compare with PyTorch",
    }
    bars = [
        Bar(text, max(measured[key], 0.0), f"{measured[key]:.1f} s", "s4")
        for key, text in names.items()
        if key in measured
    ]
    caption = "Seconds of each part of the conversion, on the machine that made the folder."
    return draw_bars("times", "Time of the conversion", caption, bars, ("part", "time"))


def _speed_bar(row: Row, name: str, unit: str) -> Bar:
    value: Spread | None = getattr(row, name)
    label = f"{row.engine}, {row.device}: {cut(row.model.rstrip('/').rpartition('/')[2], 28)}"
    kind = "s1" if row.engine == "mlx" else "s2"
    if value is None:
        reason = row.not_measured.get(name) or row.error or "no reason given"
        return Bar(label, None, f"not measured: {cut(str(reason), 60)}", kind)
    if unit == "bytes":
        return Bar(label, max(value.median, 0.0), format_bytes(value.median), kind)
    text = f"{decimal(value.median)} {unit}"
    return Bar(label, max(value.median, 0.0), text, kind, low=value.low, high=value.high)
