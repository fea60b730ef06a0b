"""The report as one HTML page: no script, no request, light and dark, desktop, phone and paper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from torch2mlx import __version__
from torch2mlx.reporting.charts import Picture, Point, draw_bars, draw_tradeoff, pareto
from torch2mlx.reporting.charts.bars import Bar
from torch2mlx.reporting.facts import Facts, Verdict
from torch2mlx.reporting.figures import (
    cost_pictures,
    error_pictures,
    parity_pictures,
    speed_pictures,
    tiles,
)
from torch2mlx.reporting.numbers import cut, decimal, percent, scientific
from torch2mlx.reporting.terminal import format_bytes
from torch2mlx.reporting.usage import usages
from torch2mlx.verification.details import Sample

__all__ = ["build_comparison", "build_page"]

_MOST_ROWS = 1500  # of a table
_MOST_CASES = 3  # named in a sentence
_LONGEST_TEXT = 4000  # characters of a sample

Table = tuple[tuple[str, ...], Sequence[tuple[str, ...]]]


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        name: its anchor.
        title: heading.
        text: what it shows, in a sentence or two.
        pictures, tables, notes: what is in it.
    """

    name: str
    title: str
    text: str
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()


def build_page(facts: Facts) -> str:
    """The report of one folder."""
    return _render(
        "report.html.jinja",
        facts=facts,
        verdict=facts.verdict,
        tiles=list(tiles(facts)),
        sections=list(_sections(facts)),
        usages=usages(facts),
    )


def build_comparison(folders: Sequence[Facts]) -> str:
    """The report of several folders, quality against size."""
    names = _names(folders)
    points = [
        Point(name, f.size, f.divergence)
        for name, f in zip(names, folders, strict=True)
        if f.divergence is not None
    ]
    titles = list(dict.fromkeys(f.title for f in folders))
    return _render(
        "comparison.html.jinja",
        title=cut(", ".join(titles), 120),
        count=len(folders),
        verdict=_overall(folders, points),
        sections=list(_comparison_sections(folders, names, points)),
    )


def _render(template: str, **values: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("torch2mlx.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters.update(cut=cut, limited=lambda text: str(text)[:_LONGEST_TEXT])
    style = (files("torch2mlx.reporting") / "templates" / "style.css").read_text(encoding="utf-8")
    environment.globals.update(style=Markup(style), version=__version__, most=_MOST_ROWS)
    return environment.get_template(template).render(values)


def _sections(facts: Facts) -> Iterator[Section]:
    yield _parity(facts)
    errors = error_pictures(facts)
    if facts.scheme or errors:
        unchanged = facts.evidence.unchanged
        kept = f" {unchanged} further tensors hold the source's bits." if unchanged else ""
        yield Section(
            "rounding",
            "What rounding changed",
            "Measured apart from the conversion itself: how far the written weights lie from the "
            f"source's, and what that does to predictions on text.{kept}",
            errors,
        )
    if facts.evidence.samples:
        same = facts.evidence.samples[0]
        yield Section(
            "texts",
            "The same prompt",
            f"Always the most likely token; {_shared(same)}.",
        )
    yield Section(
        "cost",
        "Size, memory, time",
        "What the folder takes, and what it took to make it.",
        cost_pictures(facts),
    )
    speed = speed_pictures(facts)
    if facts.benchmark is not None:
        yield Section("speed", "Speed", _conditions(facts), speed)
    yield Section("use", "Run it", "The folder as it is; nothing has to be converted again.")
    yield _provenance(facts)


def _shared(sample: Sample) -> str:
    if sample.same >= sample.tokens:
        return "both write the same words"
    start = f"the first {sample.same} of {sample.tokens} tokens are the same"
    return start if sample.same else "the texts differ from the first token on"


def _parity(facts: Facts) -> Section:
    verified = facts.verified
    if not verified.ran:
        return Section("parity", "Compared with PyTorch", "Nothing was compared.")
    rows = [
        (
            part.part,
            f"{part.tokens}",
            scientific(part.logits.relative),
            scientific(part.cached.relative) if part.cached else "–",
            scientific(part.tolerance),
            percent(part.top1) if part.top1 is not None else "–",
            "passed" if part.passed else "failed",
        )
        for part in verified.comparisons
    ]
    header = (
        "comparison", "tokens", "logits", "through the cache", "limit", "same token", "result"
    )  # fmt: skip
    tables: list[Table] = [(header, rows)] if rows else []
    text = (
        "Both sides compute in float32 on the same inputs, so that only the conversion counts: a "
        "tiny twin of the model, its real layers, and the folder as mlx-lm loads it."
    )
    if facts.compiled:
        cases = "; ".join(verified.cases)
        many = len(verified.cases) > _MOST_CASES
        shown = f"{len(verified.cases)} inputs, listed below" if many else cut(cases)
        text = f"The generated code beside the module, on: {shown}."
    if verified.audit is not None:
        state = "holds what its source says" if verified.audit.passed else "was compared"
        text += (
            f" Every one of {verified.audit.tensors:,} tensors {state}, mapped back and compared."
        )
    skipped = [f"Not run: {part} ({reason})" for part, reason in verified.reasons.items()]
    notes = [*skipped, *(note for part in verified.comparisons for note in part.notes)]
    return Section("parity", "Compared with PyTorch", text, parity_pictures(facts), tables, notes)


def _conditions(facts: Facts) -> str:
    benchmark = facts.benchmark
    assert benchmark is not None
    conditions = "; ".join(
        f"{cut(str(key), 40).replace('_', ' ')} {cut(str(value), 120)}"
        for key, value in list(benchmark.conditions.items())[:12]
        if value
    )
    return (
        f"Median of {benchmark.repeats} runs of {benchmark.prompts} prompts, measured in one run "
        f"of torch2mlx bench. {conditions}"
    )


def _provenance(facts: Facts) -> Section:
    manifest = facts.manifest
    files = [
        ("source", name, format_bytes(record.size), record.sha256 or "–")
        for name, record in manifest.source.files.items()
    ]
    files += [
        ("this folder", name, format_bytes(record.size), record.sha256 or "–")
        for name, record in manifest.outputs.items()
    ]
    versions: list[tuple[str, ...]] = list(manifest.versions.items())
    options = [(str(k), str(v)) for k, v in manifest.options.items()]
    tables: list[Table] = [
        (("where", "file", "size", "SHA-256"), files),
        (("made with", ""), versions),
    ]
    if options:
        tables.append((("option", "value"), options))
    if facts.certificate is not None:
        text = "The certificate binds these files to the comparisons above."
    else:
        text = "The folder has no certificate."
    return Section("files", "Where it comes from", text, tables=tables, notes=facts.notes)


def _names(folders: Sequence[Facts]) -> list[str]:
    """Short names, each its own: of the folders, with their parents where two are the same."""
    short = [f.folder.resolve().name for f in folders]
    return [
        name if short.count(name) == 1 else f"{f.folder.resolve().parent.name}/{name}"
        for name, f in zip(short, folders, strict=True)
    ]


def _overall(folders: Sequence[Facts], points: Sequence[Point]) -> Verdict:
    tones = {f.verdict.tone for f in folders}
    tone = "bad" if "bad" in tones else "warn" if "warn" in tones else "good"
    headlines = {
        "good": f"All {len(folders)} equal to PyTorch before rounding",
        "warn": "Not every conversion was compared with PyTorch",
        "bad": "At least one conversion differs from PyTorch",
    }
    front = pareto(points)
    names = ", ".join(cut(p.label, 40) for p in front)
    text = f"No other conversion is both smaller and closer to the original than: {names}."
    return Verdict(tone, headlines[tone], text if len(points) > 1 else "")


def _comparison_sections(
    folders: Sequence[Facts], names: Sequence[str], points: Sequence[Point]
) -> Iterator[Section]:
    header = (
        "conversion", "verdict", "quantization", "weights", "bits a weight", "mean KL",
        "same token", "difference", "certificate",
    )  # fmt: skip
    rows = [
        (
            name,
            f.verdict.headline,
            f.scheme or "none",
            format_bytes(f.size),
            decimal(f.bits),
            "not measured" if f.divergence is None else decimal(f.divergence),
            percent(f.verified.cost("quantization").get("top1"))
            if f.verified.cost("quantization")
            else "–",
            scientific(f.verified.worst[0]) if f.verified.ran else "–",
            f.certificate.digest[:12] if f.certificate is not None else "none",
        )
        for name, f in zip(names, folders, strict=True)
    ]
    unmeasured = len(folders) - len(points)
    left = f" {unmeasured} of them have no measured divergence." if unmeasured else ""
    front = draw_tradeoff(points)
    sizes = draw_bars(
        "sizes",
        "Size of the weights",
        "On the disk.",
        [Bar(n, f.size, format_bytes(f.size)) for n, f in zip(names, folders, strict=True)],
        ("conversion", "weights"),
    )
    bars = [
        Bar(n, f.divergence, "not measured" if f.divergence is None else decimal(f.divergence))
        for n, f in zip(names, folders, strict=True)
    ]
    loss = draw_bars(
        "losses",
        "Mean KL divergence",
        "Nats a token by quantization, on text; 0 where nothing is quantized.",
        bars,
        ("conversion", "mean KL, nats"),
    )
    found = [picture for picture in (front, sizes, loss) if picture is not None]
    yield Section(
        "quality",
        "Quality against size",
        f"What quantization saves and what it costs.{left}",
        found,
    )
    yield Section("table", "Side by side", "The figures of each folder's own report.",
                  tables=[(header, rows)])  # fmt: skip
    speed = [p for f in folders for p in speed_pictures(f)] if len(folders) == 1 else []
    if speed:
        yield Section("speed", "Speed", "", speed)
