"""Tables and a plot of what `quality.py` recorded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantizers import OURS, PEER

__all__ = ["write_report"]

Record = Mapping[str, Any]
_SAME = 0.02  # bits per weight that count as the same size


def write_report(records: Mapping[str, Record], folder: Path) -> None:
    """Write quality.md and, where there is something to draw, quality.svg."""
    measured = {name: record for name, record in records.items() if record.get("texts")}
    texts = list(next(iter(measured.values()))["texts"]) if measured else []
    parts = [_all_rows(measured, texts, records.get("reference", {}))]
    for text in texts:
        parts += [_against_peers(measured, text), _equal_embeddings(measured, text)]
    failed = {n: r["failed"] for n, r in records.items() if "failed" in r}
    if failed:
        parts.append("\n".join(["Not measured:", *(f"- {n}: {why}" for n, why in failed.items())]))
    (folder / "quality.md").write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")
    if texts:
        _plot(measured, texts[0], folder / "quality.svg")


def _kl(record: Record, text: str) -> float:
    return float(record["texts"][text]["kl"])


def _all_rows(measured: Mapping[str, Record], texts: Sequence[str], reference: Record) -> str:
    columns = [f"KL, {text} | ppl | top-1 %" for text in texts]
    lines = [
        "| method | bpw | " + " | ".join(columns) + " | loops % | s | CPU s | GB |",
        "|" + "---|" * (6 + 3 * len(texts)),
    ]
    if "loops" in reference:
        dashes = "– | " * (3 * len(texts))
        lines.append(f"| PyTorch | – | {dashes}{100 * reference['loops']:.0f} | – | – | – |")
    order = sorted(measured.items(), key=lambda item: (item[1]["bits_per_weight"], item[0]))
    for name, record in order:
        cells = []
        for text in texts:
            found = record["texts"][text]
            cells.append(f"{found['kl']:.4f} ± {found['kl_error']:.4f}")
            cells.append(f"{found['perplexity']:.1f}")
            cells.append(f"{100 * found['top1']:.1f}")
        loops = f"{100 * record['loops']:.0f}" if "loops" in record else "–"
        costs = [
            f"{record[key] / unit:.{digits}f}" if key in record else "–"
            for key, unit, digits in (
                ("seconds", 1, 0), ("cpu_seconds", 1, 0), ("peak_rss", 1e9, 1)
            )
        ]  # fmt: skip
        cells = [f"{record['bits_per_weight']:.2f}", *cells, loops, *costs]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    worst = max(
        (r["mlx_difference"] for r in measured.values() if "mlx_difference" in r), default=0
    )
    if worst:
        lines.append(
            f"\nLargest relative L2 difference of a folder in MLX from PyTorch: {worst:.1e}"
        )
    return "\n".join(lines)


def _against_peers(measured: Mapping[str, Record], text: str) -> str:
    """Each method of mlx-lm beside the best of ours that takes no more room."""
    plain = {n: r for n, r in measured.items() if r["family"] != "equal embeddings"}
    ours = {n: r for n, r in plain.items() if r["owner"] == OURS}
    lines = []
    for name, record in sorted(plain.items(), key=lambda i: i[1]["bits_per_weight"]):
        if record["owner"] != PEER:
            continue
        size = record["bits_per_weight"] + _SAME
        for label in ("calibrated", "distilled"):
            fitting = {
                n: r for n, r in ours.items() if r["bits_per_weight"] <= size and n.endswith(label)
            }
            if fitting:
                best = min(fitting, key=lambda n: _kl(fitting[n], text))
                found = _kl(fitting[best], text)
                lines.append(
                    f"| {name} | {record['bits_per_weight']:.2f} | {_kl(record, text):.4f} "
                    f"| {best} "
                    f"| {fitting[best]['bits_per_weight']:.2f} | {found:.4f} "
                    f"| {_kl(record, text) / found:.2f} |"
                )
    if not lines:
        return ""
    head = f"Text {text}: | bpw | KL | ours, no larger | bpw | KL | KL ratio |"
    return "\n".join([f"| {head}", "|---|---|---|---|---|---|---|", *lines])


def _equal_embeddings(measured: Mapping[str, Record], text: str) -> str:
    """Both sides with the same embedding: theirs with ours, and ours rounded to nearest."""
    lines = []
    for name, record in measured.items():
        bits = re.match(rf"{PEER} (\d)-bit ", name)
        if record["owner"] != PEER or not bits:
            continue
        mine = f"{OURS} {bits[1]}-bit"
        given = name.endswith(", our embedding")
        suffix = "" if given else ", embedding RTN"
        for label in ("calibrated", "distilled"):
            other = measured.get(f"{mine} {label}{suffix}")
            if other is not None:
                ratio = _kl(record, text) / _kl(other, text)
                lines.append(
                    f"| {name} | {_kl(record, text):.4f} | {mine} {label}{suffix} "
                    f"| {_kl(other, text):.4f} | {ratio:.2f} |"
                )
    if not lines:
        return ""
    head = f"| Embeddings alike, text {text} | KL | ours | KL | KL ratio |"
    return "\n".join([head, "|---|---|---|---|---|", *sorted(lines)])


def _plot(measured: Mapping[str, Record], text: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    families: dict[str, list[tuple[float, float, float]]] = {}
    for record in measured.values():
        if record["family"] != "equal embeddings":
            found = record["texts"][text]
            point = (record["bits_per_weight"], found["kl"], found["kl_error"])
            families.setdefault(record["family"], []).append(point)
    figure, axes = plt.subplots(figsize=(7, 4.5))
    colours = [*plt.get_cmap("tab20").colors[::2], *plt.get_cmap("tab20").colors[1::2]]
    for number, family in enumerate(sorted(families, key=lambda f: (not f.startswith(OURS), f))):
        points = sorted(p for p in families[family] if p[1] == p[1])
        sizes, divergences, errors = (list(values) for values in zip(*points, strict=True))
        own = family.startswith(OURS)
        axes.errorbar(
            sizes, divergences, yerr=errors, label=family, color=colours[number % 20], capsize=2,
            marker="o" if own else "xsv^D*+d"[number % 8], linestyle="-" if own else "--",
            linewidth=1.8 if own else 0.9, markersize=4,
        )  # fmt: skip
    axes.set(yscale="log", xlabel="measured bits per weight", ylabel=f"mean KL, {text} (nats)")
    axes.grid(which="both", linewidth=0.3)
    axes.legend(fontsize=7)
    figure.tight_layout()
    plt.rcParams["svg.hashsalt"] = "torch2mlx"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
