"""The page of operators: what is lowered, and what was compared.

    python tests/compiler/conformance/page.py             write docs/operators.md
    python tests/compiler/conformance/page.py --measure   run every sample first (minutes)
    ... --measure float32                                 of these element types only

`results.json` beside this file holds the counts of the last run; the names, attributes and limits
come from the registry and the table.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from opinfo import WIDE, harvests
from runner import dtypes_of, load_table, name_of, run, sample_limit
from table import Case

from torch2mlx.compiler.lowering.registry import registered

RESULTS = Path(__file__).with_name("results.json")
PAGE = Path(__file__).parents[3] / "docs" / "operators.md"
PACKAGE = "torch2mlx.compiler.lowering."

INTRODUCTION = """\
# Operators

Which operators of PyTorch the [compiler](compiler.md) lowers, and what was compared. The names are
those in a program after `torch.export.export(...).run_decompositions({{}})`; an operator that is
not listed is refused when a module is compiled, with the line of the module that uses it.

Every operator runs in PyTorch and, lowered, in MLX on the CPU, on samples of PyTorch's own OpInfo
database and on samples of the suite. Every second sample is given as arrays that are not
contiguous; elementwise operators also get 0-d and empty ones. *compared* counts the samples whose
results agreed, by element type; *refused* those that the lowering must refuse, because MLX cannot
follow an attribute or a type. The recorded run took {scope}.

{operators} operators, {compared} comparisons, {refused} refusals. Left out: {wide} samples
of OpInfo with float64 or complex128, which MLX lacks on the GPU, and {untraced} that `make_fx`
could not turn into a graph (a last section gives their reasons, if there are any).

This page is written by `python tests/compiler/conformance/page.py`; `--measure` runs the samples.
"""


def measure(rows: list[Case], dtypes: list[str]) -> dict[str, Any]:
    """Run every sample; raises SystemExit if one disagrees."""
    results: dict[str, Any] = {}
    wrong = 0
    for row in rows:
        name = name_of(row.overload)
        counts: dict[str, list[int]] = {}
        left_out: dict[str, int] = defaultdict(int)
        for dtype in (d for d in dtypes_of(row) if not dtypes or _short(d) in dtypes):
            outcome = run(row, dtype)
            wrong += len(outcome.problems)
            for problem in outcome.problems:
                print(f"{name} {_short(dtype)}: {problem}", flush=True)
            if outcome.ran:
                failed = outcome.expected_failures
                refused = sum(n for failure, n in failed.items() if failure.kind == "refused")
                counts[_short(dtype)] = [outcome.agreed, refused, sum(failed.values()) - refused]
            for harvest in harvests(row.overload, row.opinfo, dtype, sample_limit(row, dtype)):
                for reason, number in harvest.unusable.items():
                    left_out[reason] += number
        results[name] = {"samples": counts, "left_out": dict(left_out)}
    if wrong:
        raise SystemExit(f"{wrong} samples disagree: {RESULTS.name} stays as it was")
    return {
        "operators": results,
        "dtypes": dtypes,
        "limit": os.environ.get("CONFORMANCE_LIMIT", ""),
    }


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def page(rows: list[Case], recorded: dict[str, Any]) -> str:
    """The text of docs/operators.md."""
    results: dict[str, Any] = recorded["operators"]
    lowerings = registered()
    families: dict[str, list[Case]] = defaultdict(list)
    for row in rows:
        if row.overload in lowerings:
            families[lowerings[row.overload].__module__].append(row)
    totals: dict[str, int] = defaultdict(int)
    reasons: dict[str, int] = defaultdict(int)
    for result in results.values():
        for agreed, refused, _ in result["samples"].values():
            totals["compared"] += agreed
            totals["refused"] += refused
        for reason, number in result["left_out"].items():
            reasons[reason] += number
    wide = reasons.pop(WIDE, 0)
    parts = [
        INTRODUCTION.format(
            operators=len(results),
            wide=wide,
            untraced=sum(reasons.values()),
            scope=_scope(recorded),
            **totals,
        )
    ]
    for module, members in sorted(families.items()):
        documentation = (sys.modules[module].__doc__ or "").strip().splitlines()[0]
        parts.append(f"## {documentation.rstrip('.')}\n\n`{module.removeprefix(PACKAGE)}.py`\n")
        parts.append("| operator | compared | refused | limits |\n|---|---|---|---|")
        parts += [_line(row, results[name_of(row.overload)]) for row in members]
        parts.append("")
    if reasons:
        parts.append("## Samples of OpInfo without a graph\n")
        parts.append("| samples | reason |\n|---|---|")
        ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
        parts += [f"| {number} | {_plain(reason)} |" for reason, number in ordered]
    return "\n".join(parts).rstrip() + "\n"


def _scope(recorded: dict[str, Any]) -> str:
    """What the recorded run took of the samples."""
    most = (
        f"at most {recorded['limit']}"
        if recorded["limit"]
        else "at most 16 of float32, 4 of others,"
    )
    types = (
        f"the element types {', '.join(recorded['dtypes'])}" if recorded["dtypes"] else "every type"
    )
    return f"{most} for each entry of OpInfo, in {types}"


def _line(row: Case, result: dict[str, Any]) -> str:
    samples = result["samples"]
    compared = ", ".join(f"{d} {n[0]}" for d, n in samples.items() if n[0])
    refused = ", ".join(f"{d} {n[1]}" for d, n in samples.items() if n[1])
    limits = [failure.reason for failure in row.fails]
    limits += [f"not compared: {reason}" for reason, _ in row.skip]
    if row.compare == "statistics":
        limits.append("compared: shape, mean, spread, values that occur")
    if row.compare == "shape":
        limits.append("compared: shape")
    if row.reason:
        limits.append(f"tolerance: {row.reason}")
    name = name_of(row.overload)
    return f"| `{name}` | {compared} | {refused} | {_plain('; '.join(limits))} |"


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def sorted_rows() -> list[Case]:
    """Every row of the table, by name."""
    return sorted(load_table().values(), key=lambda row: name_of(row.overload))


if __name__ == "__main__":
    if "--measure" in sys.argv[1:]:
        measured = measure(sorted_rows(), sys.argv[sys.argv.index("--measure") + 1 :])
        RESULTS.write_text(json.dumps(measured, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(page(sorted_rows(), json.loads(RESULTS.read_text())))
