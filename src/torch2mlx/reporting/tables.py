"""Results as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from torch2mlx.api import Conversion, Generation, Verification
from torch2mlx.benchmarking import Benchmark, Row, Spread
from torch2mlx.compiler.route import Compiled
from torch2mlx.compiler.verification import ProgramVerification
from torch2mlx.diagnosis import Examination
from torch2mlx.evidence.recheck import CertificateCheck
from torch2mlx.evidence.upload import Upload
from torch2mlx.inspection import Inspection
from torch2mlx.reporting.terminal import format_bytes
from torch2mlx.selection import Selection, Strategy

__all__ = ["render"]


@singledispatch
def render(result: object) -> None:
    """Print a result of `torch2mlx.api`."""
    raise TypeError(f"nothing renders a {type(result).__name__}")


def _grid() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table


@render.register
def _(result: Inspection) -> None:
    console = Console(highlight=False)
    table = _grid()
    table.add_row("checkpoint", result.location)
    table.add_row("format", f"{result.kind}, {result.files} file(s), {format_bytes(result.nbytes)}")
    table.add_row("model", f"{result.model_type} ({', '.join(result.architectures) or 'unnamed'})")
    table.add_row("parameters", f"{result.parameters:,}")
    table.add_row("dtypes", ", ".join(f"{k} {_share(v, result)}" for k, v in result.dtypes.items()))
    table.add_row("layers", _or_dash(result.layers))
    table.add_row("context", _or_dash(result.context))
    table.add_row("tied head", _or_dash(result.tied))
    table.add_row("tokenizer", "yes" if result.tokenizer else "none")
    table.add_row("chat template", "yes" if result.chat_template else "none")
    route = f"mlx-lm port {result.route}" if result.route else "none"
    table.add_row("route", route if result.program is None else f"converted as {result.program}")
    table.add_row("several Macs", f"with mlx.launch: {'yes' if result.sharded else 'no'}")
    table.add_row("licence", result.licence or "not stated here")
    kinds = (f"{kind} {_share(count, result)}" for kind, count in result.classes.items())
    table.add_row("modules", ", ".join(kinds))
    for line in result.expert_layout:
        table.add_row("experts" if line == result.expert_layout[0] else "", line)
    for name, text in result.costs.items():
        table.add_row(f"{name} takes", text)
    console.print(table)
    for note in result.notes:
        console.print(f"note: {note}", style="dim")
    for hazard in result.hazards:
        console.print(f"hazard: {hazard}", style="yellow")


@render.register
def _(result: Selection) -> None:
    console = Console(highlight=False)
    caches = "unknown" if result.cache_bytes is None else format_bytes(result.cache_bytes)
    beside = f"caches of {result.context:,} tokens: {caches}"
    if result.context == 0:
        beside = "what its inputs need while it runs is not counted"
    console.print(f"{result.location}: {result.parameters:,} parameters as {result.port}; {beside}")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    predicted = any(s.predicted is not None for s in result.strategies)
    columns = ("strategy", "weights", "bits/weight", "files", "while running", "Mac", "KL*")
    for name in (*columns, *(("predicted KL",) if predicted else ())):
        table.add_column(name, justify="left" if name == "strategy" else "right")
    for strategy in result.strategies:
        marked = "bold green" if strategy.name == result.recommended else None
        style = "dim" if strategy.fits is False else marked
        own = () if strategy.predicted is None else (f"{strategy.predicted:.3g}",)
        table.add_row(*_columns(strategy), *own, style=style)
    console.print(table)
    if result.context:
        console.print(
            "* nats a token that round to nearest (or calibration) costs SmolLM2-135M; larger "
            "models lose less",
            style="dim",
        )
    if predicted:
        console.print(
            "predicted KL: of this model, rounded to nearest, from its own gradients to second "
            "order; too high where bits are few; --calibrate costs less at the same size",
            style="dim",
        )
    chosen = next((s for s in result.strategies if s.name == result.recommended), None)
    if chosen is None:
        console.print(result.reason, style="yellow")
    else:
        console.print(f"{chosen.name}: {result.reason}")
        console.print(f"  {result.command(chosen)}", soft_wrap=True)
        if result.chosen is not None and chosen.name != result.chosen:
            console.print(f"for convert --plan: {result.chosen}")


@render.register
def _(result: Examination) -> None:
    console = Console(highlight=False)
    table = _grid()
    for name, value in result.facts.items():
        table.add_row(name, value)
    console.print(table)
    for finding in result.findings:
        mended = " (mended)" if finding.name in result.fixed else ""
        console.print(f"\n{finding.name}{mended}", style="green" if mended else "yellow")
        console.print(f"  symptom: {finding.symptom}", soft_wrap=True, markup=False)
        console.print(f"  cause:   {finding.cause}", soft_wrap=True, markup=False)
        console.print(f"  cure:    {finding.cure}", soft_wrap=True, markup=False)
    if not result.findings:
        console.print("nothing wrong found", style="green")


@render.register
def _(result: CertificateCheck) -> None:
    console = Console(highlight=False)
    table = _grid()
    table.add_row("certificate", result.digest)
    table.add_row("files", f"{result.files}, {'changed' if result.problems else 'as certified'}")
    for run in result.runs:
        style = "green" if run.passed else "red"
        table.add_row(
            escape(run.name),
            f"[{style}]relative L2 {run.relative:.3g}[/], limit {run.tolerance:g}, "
            f"{_or_dash(run.before)} when it was made",
        )
    console.print(table)
    for problem in result.problems:
        console.print(problem, style="red", markup=False, soft_wrap=True)
    for name, (then, now) in result.versions.items():
        console.print(f"note: {name} {then} then, {now} now", style="dim", markup=False)
    if result.limits:
        console.print(f"not repeated: {result.limits}", style="yellow", markup=False)


@render.register
def _(result: Upload) -> None:
    console = Console(highlight=False)
    table = _grid()
    for name, size in result.files:
        table.add_row(escape(name), format_bytes(size))
    table.add_row("all", format_bytes(result.nbytes))
    console.print(table)
    for warning in result.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    private = " (private)" if result.private else ""
    if result.address is None:
        console.print(f"would be uploaded to {result.repository}{private}", markup=False)
    else:
        console.print(f"uploaded to {result.address}{private}", markup=False, soft_wrap=True)


def _columns(strategy: Strategy) -> tuple[str, ...]:
    return (
        strategy.name,
        format_bytes(strategy.nbytes),
        f"{strategy.bits_per_weight:.2f}",
        str(strategy.shards),
        format_bytes(strategy.runtime_memory),
        "none" if strategy.mac is None else f"{strategy.mac} GB",
        "-" if strategy.kl is None else f"{strategy.kl:.3g}",
    )


def _share(count: int, result: Inspection) -> str:
    return f"{100 * count / max(1, result.parameters):.3g}%"


def _or_dash(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


@render.register
def _(result: Generation) -> None:
    Console(highlight=False, stderr=True).print(
        f"\n{result.prompt_tokens} prompt tokens at {result.prompt_tps:.3g}/s, "
        f"{result.generated_tokens} generated at {result.generation_tps:.3g}/s, "
        f"peak memory {format_bytes(result.peak_memory)}",
        style="dim",
    )


@render.register
def _(result: Benchmark) -> None:
    console = Console(highlight=False)
    where = result.conditions
    console.print(
        f"{where['processor']}, {where['cores']} cores, load {where['load_before']} before and "
        f"{where['load_after']} after; medians of {result.repeats} passes ± the largest deviation"
    )
    module = result.rows[0].kind == "module"
    speed = ("latency ms",) if module else ("first token s", "prefill tokens/s", "decode tokens/s")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("engine", "device", "model", "load s", *speed, "peak memory", "energy J"):
        table.add_column(name, overflow="fold")
    for row in result.rows:
        table.add_row(*_measured(row, module))
    console.print(table)
    for row in result.rows:
        if row.error is not None:
            text = f"{row.engine} on {row.device}, {row.model}: not measured: {row.error}"
            console.print(text, style="yellow", soft_wrap=True, markup=False)
    reasons = {f"{k}: {v}" for row in result.rows for k, v in row.not_measured.items()}
    for reason in sorted(reasons):
        console.print(f"not measured: {reason}", style="dim", markup=False)
    for note in where["notes"]:
        console.print(f"note: {note}", style="yellow", markup=False)


def _measured(row: Row, module: bool) -> tuple[str, ...]:
    speed = [_spread(row.ttft_s), _spread(row.prefill_tps), _spread(row.decode_tps)]
    if module:
        speed = [_spread(row.latency_s, 1000)]
    peak = "-" if row.peak_bytes is None else format_bytes(int(row.peak_bytes.median))
    device = row.device if row.dtype is None else f"{row.device}, {row.dtype}"
    start = (row.engine, device, escape(row.model), _spread(row.load_s))
    return (*start, *speed, peak, _spread(row.energy_j))


def _spread(found: Spread | None, factor: float = 1) -> str:
    if found is None:
        return "-"
    median = factor * found.median
    text = f"{median:,.0f}" if median >= 1000 else f"{median:.3g}"
    spread = max(found.high - found.median, found.median - found.low) / found.median
    return text if found.runs == 1 else f"{text} ±{100 * spread:.0f}%"


@render.register
def _(result: Conversion) -> None:
    console = Console(highlight=False)
    manifest = result.manifest.to_dict()
    table = _grid()
    table.add_row("written", str(result.destination))
    weights = manifest["weights"]
    table.add_row(
        "weights",
        f"{format_bytes(weights['total_size'])}, {weights['bits_per_weight']:.3f} bits per weight "
        f"({weights['total_parameters']:,} weights, measured on the files)",
    )
    for name, reason in list(manifest["plan"]["dropped"].items())[:6]:
        table.add_row("left out", f"{name}: {reason}")
    measured = manifest["measured"]
    table.add_row(
        "cost",
        f"convert {measured.get('convert_wall_s', 0):.1f} s, "
        f"verify {measured.get('verify_wall_s', 0):.1f} s, "
        f"peak memory {format_bytes(measured['peak_rss_bytes'])}",
    )
    memory = manifest["plan"].get("memory")
    if memory:
        table.add_row(
            "memory",
            f"{format_bytes(memory['total'])} while running with {memory['context']:,} tokens, of "
            f"{format_bytes(memory['limit'])}",
        )
    console.print(table)
    _parity(console, manifest["verification"])
    for other in result.also:
        render(other)


@render.register
def _(result: Compiled) -> None:
    table = _grid()
    table.add_row("written", str(result.destination))
    models = ", ".join(f"{name}/model.py" for name in result.parts) or "model.py"
    where = f"for {result.library}" if result.library else f"in {models}"
    table.add_row("model", f"{result.model_class} {where}")
    table.add_row(
        "weights",
        f"{format_bytes(result.total_size)}, {result.bits_per_weight:.3g} bits a weight",
    )
    if result.error is None or result.limit is None:
        table.add_row("compared on", "nothing (--no-verify)")
    else:
        table.add_row("compared on", "; ".join(result.cases))
        errors = [f"{name} {_number(e)}" for name, e in result.parts.items() if e is not None]
        shown = ", ".join(errors) or _number(result.error)
        table.add_row("relative L2", f"{shown} (limit {_number(result.limit)})")
    if result.drift is not None:
        table.add_row("quantization", f"moves the outputs by {_number(result.drift)}")
    Console(highlight=False).print(table)


@render.register
def _(result: Verification) -> None:
    console = Console(highlight=False)
    _parity(console, result.report.to_dict())
    tokenizer = result.tokenizer
    state = "equal" if tokenizer.get("passed") and tokenizer.get("available") else "not checked"
    if not tokenizer.get("passed"):
        state = "; ".join(tokenizer.get("errors", ())) or "differs"
    console.print(f"tokenizer: {state}")
    verdict, style = ("equal", "green") if result.passed else ("NOT equal", "red")
    console.print(f"{result.folder}: {verdict} to its PyTorch source", style=f"bold {style}")


@render.register
def _(result: ProgramVerification) -> None:
    console = Console(highlight=False)
    table = _grid()
    table.add_row("tensors", f"{result.tensors}, equal to the source's")
    table.add_row("compared on", "; ".join(result.cases))
    table.add_row("relative L2", f"{_number(result.error)} (limit {_number(result.limit)})")
    if result.drift is not None:
        table.add_row("quantization", f"moves the outputs by {_number(result.drift)}")
    console.print(table)
    for note in result.notes:
        console.print(f"note: {note}", style="dim")
    console.print(f"{result.folder}: equal to its PyTorch source", style="bold green")


def _parity(console: Console, report: Mapping[str, Any]) -> None:
    if report.get("skipped") is True:
        console.print("not compared with PyTorch (--no-verify)", style="yellow")
        return
    table = Table(title="Proof against PyTorch", title_justify="left")
    for heading in ("part", "what", "result", "bound", ""):
        table.add_column(heading)
    for c in report["comparisons"]:
        table.add_row(
            c["part"], f"{c['tokens']} tokens, {len(c['layers'])} layers",
            f"relative L2 {_number(c['logits']['relative'])}", _number(c["tolerance"]),
            _mark(c["passed"]),
        )  # fmt: skip
    audit = report.get("audit")
    if audit:
        table.add_row("audit", _audit_text(audit), "", "", _mark(audit["passed"]))
    for budget in report["budgets"]:
        limits = budget["limits"]
        for name, value in budget["figures"].items():
            bound = _number(limits[name]) if name in limits else "-"
            table.add_row(budget["name"], name.replace("_", " "), _number(value), bound, "")
    console.print(table)
    for part, reason in (report.get("skipped") or {}).items():
        console.print(f"{part}: not run: {reason}", style="dim")


def _audit_text(audit: Mapping[str, Any]) -> str:
    counts = audit.get("counts") or {}
    return ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "every tensor"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _mark(passed: bool) -> str:
    return "[green]ok[/]" if passed else "[red]FAILED[/]"
