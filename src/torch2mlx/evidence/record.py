"""torch2mlx/evidence.json: the figures that a report draws, too many for the manifest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from torch2mlx.evidence.memory import MemoryRecord
from torch2mlx.evidence.parsing import parse_file, plain
from torch2mlx.verification.details import Details, Sample

if TYPE_CHECKING:
    from torch2mlx.planning.plan import Output

__all__ = [
    "EVIDENCE",
    "FOLDER",
    "Divergence",
    "Evidence",
    "ModuleRecord",
    "OutputRecord",
    "build_evidence",
    "read_evidence",
    "write_evidence",
]

FOLDER = "torch2mlx"
"""Of an output, where everything lies that no program needs to run the model."""

EVIDENCE = f"{FOLDER}/evidence.json"

_LARGEST = 16 << 20  # bytes; a real one of the largest models has 300 KB
_BINS = np.concatenate([[0.0], 10.0 ** np.arange(-6, 2.01, 0.25)])  # nats


@dataclass(frozen=True)
class ModuleRecord:
    """One parameter as it was written.

    Attributes:
        name: path of its module; of the parameter where that is not a weight.
        kind: what the audit found (`TensorCheck.kind`).
        elements: of the parameter.
        nbytes: on the disk, scales and biases included.
        rms: ‖written - source‖ / ‖source‖; None: not finite.
        largest: largest absolute difference; None: not finite.
    """

    name: str
    kind: str
    elements: int
    nbytes: int
    rms: float | None
    largest: float | None


@dataclass(frozen=True)
class Divergence:
    """KL divergence from the original, in nats a token, on windows of text.

    Attributes:
        edges: of the bins, one more than `counts`; the last bin is open.
        counts: tokens in each bin.
        windows: mean of each window.
        positions: mean at every position of a window, over all windows.
        median, ninety, ninety_nine, largest: 50, 90, 99 and all per cent of the tokens are below.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    windows: tuple[float | None, ...]
    positions: tuple[float | None, ...]
    median: float | None
    ninety: float | None
    ninety_nine: float | None
    largest: float | None


@dataclass(frozen=True)
class OutputRecord:
    """One output of a compiled module on one input, beside PyTorch's.

    Attributes:
        case: what the input was ("example", "encode: batch=3").
        name: of the output ("output 0", "buffer steps").
        shape: of it.
        dtype: of it.
        relative: relative L2 error.
        limit: that it had to keep.
    """

    case: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    relative: float | None
    limit: float


@dataclass(frozen=True)
class Evidence:
    """What was seen while a folder was made.

    Attributes:
        modules: weights and whatever else was changed by rounding.
        unchanged: number of further parameters, vectors that hold the source's bits.
        divergence: on text, where that was measured.
        samples: texts of both sides.
        memory: of the run.
        outputs: of a compiled module.
    """

    modules: tuple[ModuleRecord, ...] = ()
    unchanged: int = 0
    divergence: Divergence | None = None
    samples: tuple[Sample, ...] = ()
    memory: MemoryRecord | None = None
    outputs: tuple[OutputRecord, ...] = ()


def build_evidence(
    details: Details,
    outputs: Sequence[Output],
    memory: MemoryRecord | None,
    compared: Sequence[OutputRecord] = (),
) -> Evidence:
    """The record of one folder.

    Args:
        details: of the gate's report.
        outputs: of the plan.
        memory: of the run.
        compared: outputs of a compiled module.
    """
    sizes = {output.name: output for output in outputs}
    modules, unchanged = [], 0
    for check in details.checks:
        output = sizes.get(check.name)
        if output is None:
            continue
        if len(output.expr.shape) < 2 and not check.rms:
            unchanged += 1
            continue
        modules.append(
            ModuleRecord(
                check.name.removesuffix(".weight"),
                check.kind,
                output.expr.size,
                check.nbytes,
                _short(check.rms),
                _short(check.max_error),
            )
        )
    divergence = _divergence(details.divergences) if details.divergences else None
    return Evidence(tuple(modules), unchanged, divergence, details.samples, memory, tuple(compared))


def write_evidence(folder: Path, evidence: Evidence) -> Path:
    """Write the record into an output; lists of numbers take one line each."""
    path = folder / EVIDENCE
    path.parent.mkdir(exist_ok=True)
    entries = [f"{json.dumps(key)}: {_lines(value)}" for key, value in plain(evidence).items()]
    path.write_text("{\n" + ",\n".join(entries) + "\n}\n", encoding="utf-8")
    return path


def read_evidence(folder: Path) -> Evidence | None:
    """The record of a folder; None where it has none.

    Raises:
        SourceError: it is damaged.
    """
    path = folder / EVIDENCE
    return parse_file(Evidence, path, _LARGEST) if path.exists() else None


def _lines(value: object) -> str:
    """A list of records with one record a line, anything else in one line."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(json.dumps(item, allow_nan=False) for item in value) + "\n]"
    return json.dumps(value, allow_nan=False)


def _divergence(windows: Sequence[Sequence[float]]) -> Divergence:
    every = np.concatenate([np.asarray(w, dtype=np.float64) for w in windows])
    # Rounding can make a divergence of zero a little negative.
    counts, _ = np.histogram(np.clip(every, 0.0, _BINS[-1]), _BINS)
    length = min(map(len, windows))
    positions = np.mean([w[:length] for w in windows], axis=0)
    quantiles = np.quantile(every, [0.5, 0.9, 0.99, 1.0])
    return Divergence(
        tuple(float(f"{edge:.4g}") for edge in _BINS),
        tuple(counts.tolist()),
        tuple(_short(float(np.mean(w))) for w in windows),
        tuple(_short(p) for p in positions.tolist()),
        *(_short(q) for q in quantiles.tolist()),
    )


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if isfinite(value) else None
