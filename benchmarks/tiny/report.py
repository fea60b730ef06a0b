"""The page of what runs: a table by family, and what fails by reason."""

from __future__ import annotations

import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tiny.catalogue import FAMILIES

__all__ = ["reason", "render"]

Result = Mapping[str, Any]

# Part of a message → what it means; the first that matches counts.
_REASONS: tuple[tuple[str, str], ...] = (
    (r"not finished after", "time limit"),
    (r"the process ended|uncaught", "fault: ended in an uncaught error instead of a refusal"),
    (r"^ParityError", "refused: the comparison with PyTorch finds another result"),
    (
        r"data-dependent|depends on the data|out of a tensor's data|Piecewise|Could not extract|"
        r"u\d+ |\bitem\b|is not tracked",
        "refused: sizes or branches that depend on values (grids of images, masks)",
    ),
    (r"no lowering to MLX", "refused: an operator without a lowering"),
    (r"aten\.\w+:", "refused: an operator's argument that MLX cannot follow"),
    (r"MUTATION|assigned during export|changes|buffer", "refused: state kept outside of buffers"),
    (r"^CompileError", "refused: torch.export cannot follow it"),
)

# Converted by `torch2mlx.compiler.speech` where no example is given.
_SPOKEN = {"fastspeech2_conformer", "vits"}


def reason(text: str) -> str:
    """The group of a failure."""
    flat = " ".join(text.split())
    return next((group for found, group in _REASONS if re.search(found, flat)), "refused: other")


def render(results: Sequence[Result], versions: Mapping[str, str]) -> str:
    """Markdown: counts by family, generation, failures by reason, every type that does not run."""
    parts = [_head(results, versions), _families(results), _routes(results), _failures(results)]
    return "\n".join(line for part in parts for line in part) + "\n"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 100, break_long_words=False, break_on_hyphens=False)


def _head(results: Sequence[Result], versions: Mapping[str, str]) -> list[str]:
    run = [r for r in results if r["outcome"] != "not run"]
    right = sum(r["outcome"] == "right" for r in run)
    wrong = sum(r["outcome"] == "wrong" for r in run)
    libraries = ", ".join(f"{n} {v}" for n, v in versions.items() if n != "torch")
    torches = Counter(r.get("torch", versions["torch"]) for r in results)
    torch = ", ".join(f"torch {v} ({n} types)" for v, n in torches.most_common())
    return [
        "# Coverage: every model type of transformers",
        "",
        "Written by `python benchmarks/zoo.py`; do not edit.",
        "",
        *_wrapped(
            f"transformers has {len(results)} model types with a model class. Each is built in its "
            "main task from a config cut to a tiny size, with random weights, and run in PyTorch "
            f"on made-up inputs: {len(run)} run. Those are converted in float32 with the "
            "defaults: language models as checkpoints, through mlx-lm's port or a generated one; "
            "where no port is right, and for all others, as a compiled module with all its "
            "inputs (token ids, pixels, sound). The result is compared with PyTorch on two draws "
            "of fresh inputs; **equal** is a relative L2 error of at most 1e-4 in every output."
        ),
        "",
        *_wrapped(
            "Weights are drawn such that every part shows in the output and PyTorch's own float32 "
            "is far nearer to its float64 than 1e-4: matrices of small spread get the size 1 / "
            "square root of their inputs, frequencies 1, and variances of batch normalizations "
            "the mean square of what comes in. Detectors choose 12 places of 84 or 336, not 300, "
            "whose scores would differ by roundings alone."
        ),
        "",
        *_wrapped(
            f"At least {_fixed(run)} of the equal types are compiled for one grid of patches, "
            "image size or layout of text and image tokens: where sizes follow from values of an "
            "integer input, that input is fixed to the example's values, and the generated code "
            "refuses others (see [compile a module](compiler.md#values-that-decide-sizes)). Text, "
            "pixels and sound are free."
        ),
        "",
        *_wrapped(
            f"{right} of {len(run)} ({_share(right, len(run))}) are equal, {wrong} are wrong with "
            f"exit code 0 (converted, but above 1e-4), the others are refused with a reason or "
            f"failed. Measured with {libraries}; {torch}; on CPU. Results are kept from run to "
            "run and a type's last one counts, so they may come from different states of the "
            "converter and of the tiny instances; without the file of results everything is "
            "measured anew."
        ),
        "",
    ]


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _families(results: Sequence[Result]) -> list[str]:
    lines = [
        "## By family",
        "",
        "| family | runs in PyTorch | equal | share | wrong | refused or failed | "
        "of these, equal in parts | greedy tokens equal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in (*FAMILIES, "all"):
        run = [r for r in results if r["outcome"] != "not run"]
        run = [r for r in run if name in (r["family"], "all")]
        count = Counter(r["outcome"] for r in run)
        asked = [r["tokens_equal"] for r in run if r["outcome"] == "right" and "tokens_equal" in r]
        lines.append(
            f"| {name} | {len(run)} | {count['right']} | {_share(count['right'], len(run))} | "
            f"{count['wrong']} | {count['failed']} | {sum(map(_in_parts, run))} | "
            f"{sum(asked)} of {len(asked)} |"
        )
    return [
        *lines,
        "",
        *_wrapped(
            "Equal in parts: what is refused as a whole, but equal once transformers' exporters "
            "have computed beforehand what depends on values (grids, positions), and taken "
            "a multimodal model apart into encoder, projector and language model; each part is "
            "then compiled and compared. The parts are not put together here, so they do not count "
            "as equal. Greedy tokens: 16 steps (fewer behind the placeholders of an image) against "
            "transformers' `generate`, which runs with its cache; a compiled module runs anew on "
            "the longer text. Only types are counted whose `generate` takes these inputs."
        ),
        "",
    ]


def _fixed(run: Sequence[Result]) -> int:
    """Equal types with an input that must have the example's values."""
    return sum(r["outcome"] == "right" and bool(r.get("fixed")) for r in run)


def _in_parts(result: Result) -> bool:
    return result["outcome"] == "failed" and result.get("prepared", 1.0) <= 1e-4


def _routes(results: Sequence[Result]) -> list[str]:
    right = [r for r in results if r["outcome"] == "right"]
    counts = Counter(r["route"] for r in right)
    lines = ["## By route", "", "| route | types | median seconds |", "|---|---|---|"]
    for route, number in counts.most_common():
        seconds = sorted(r["seconds"] for r in right if r["route"] == route)
        lines.append(f"| {route} | {number} | {seconds[len(seconds) // 2]:.1f} |")
    differ = [r for r in right if r.get("tokens_equal") is False]
    if differ:
        names = ", ".join(f"{r['type']} ({r['route']})" for r in differ)
        lines += ["", *_wrapped(f"Equal outputs, but other greedy tokens: {names}.")]
    cached = [r["type"] for r in right if r.get("cache_differs")]
    if cached:
        lines += [
            "",
            *_wrapped(
                "transformers' `generate` gives other tokens with its cache than without, and "
                f"the one without is compared: {', '.join(cached)}."
            ),
        ]
    wrong = [r for r in results if r["outcome"] == "wrong"]
    if wrong:
        names = ", ".join(f"{r['type']} ({r['route']}, {r['error']:.1e})" for r in wrong)
        lines += ["", *_wrapped(f"Above 1e-4 with exit code 0: {names}.")]
    return [*lines, ""]


def _failures(results: Sequence[Result]) -> list[str]:
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for result in results:
        if result["outcome"] == "failed":
            groups[reason(result["failure"]["reason"])].append(result["type"])
    lines = ["## Failures by reason", "", "| reason | types | |", "|---|---|---|"]
    for group, names in sorted(groups.items(), key=lambda item: -len(item[1])):
        lines.append(f"| {group} | {len(names)} | {', '.join(sorted(names))} |")
    refused = {name for names in groups.values() for name in names}
    if spoken := sorted(refused & _SPOKEN):
        lines += [
            "",
            *_wrapped(
                f"Modules were given an example here. Without one, {' and '.join(spoken)} convert "
                "as wholes ([speech.md](speech.md)); that has tests of its own."
            ),
        ]
    idle = [r for r in results if r["outcome"] == "not run"]
    lines += [
        "",
        "## No instance runs in PyTorch",
        "",
        *_wrapped(
            f"{len(idle)} types: the rules for tiny configs and inputs do not fit them, or a "
            "package is missing. They are in no share above."
        ),
        "",
        "| type | first objection |",
        "|---|---|",
    ]
    for result in idle:
        text = " ".join(result["failure"]["reason"].split()).replace("|", "\\|")
        lines.append(f"| {result['type']} | {text[:140]} |")
    return lines
