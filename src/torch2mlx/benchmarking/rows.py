"""What a benchmark measured: rows of figures, each a median with its spread, or none."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["FIGURES", "SCHEMA_VERSION", "Benchmark", "Row", "Spread"]

SCHEMA_VERSION = 1

FIGURES = (
    "load_s", "ttft_s", "prefill_tps", "decode_tps", "latency_s", "peak_bytes", "energy_j",
)  # fmt: skip
"""Names of a row's figures; the suffix is the unit (s, tokens a second, bytes, joules)."""


@dataclass(frozen=True)
class Spread:
    """One figure over repeated runs.

    Attributes:
        median, low, high: of the runs.
        runs: how many there were.
    """

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """The spread of values; None where there are none."""
        found = sorted(values)
        if not found:
            return None
        return cls(statistics.median(found), found[0], found[-1], len(found))


@dataclass(frozen=True)
class Row:
    """One model on one engine and device.

    Attributes:
        engine: "mlx", "torch eager" or "torch compile".
        device: "cpu", "gpu" (MLX's), "cuda" or "mps".
        model: as the user named it.
        kind: "language" or "module".
        machine: what the device calls itself.
        dtype: that the model computes in.
        size_bytes: of its weight files, where they are files here.
        base_bytes: resident bytes of the process before the model was read; None on a GPU, whose
            peak counts the model alone.
        load_s: seconds from the first file opened to all weights in memory, with what the libraries
            import meanwhile.
        ttft_s: seconds from a prompt's text to its first token.
        prefill_tps, decode_tps: tokens a second of prompts, and after the first generated one.
        latency_s: seconds of one call; of modules.
        peak_bytes: of memory: resident (CPU) or of the device's allocator (GPU).
        energy_j: joules of the processor package while all prompts are answered once.
        not_measured: figure → why it is None.
        error: why nothing was measured.
    """

    engine: str
    device: str
    model: str
    kind: str = "language"
    machine: str | None = None
    dtype: str | None = None
    size_bytes: int | None = None
    base_bytes: int | None = None
    load_s: Spread | None = None
    ttft_s: Spread | None = None
    prefill_tps: Spread | None = None
    decode_tps: Spread | None = None
    latency_s: Spread | None = None
    peak_bytes: Spread | None = None
    energy_j: Spread | None = None
    not_measured: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Row:
        """The row of `asdict`'s plain values."""
        spreads = {k: Spread(**plain[k]) for k in FIGURES if plain.get(k) is not None}
        return cls(**{**plain, **spreads})


@dataclass(frozen=True)
class Benchmark:
    """Rows of one run, and the conditions that they were measured in.

    Attributes:
        rows: in the order in which they were measured.
        conditions: "processor", "cores", "load_before", "load_after", "notes".
        prompts: number of prompts; 0 for modules.
        max_tokens: generated for each.
        repeats: measured runs, after one that is not.
    """

    rows: tuple[Row, ...]
    conditions: Mapping[str, Any]
    prompts: int
    max_tokens: int
    repeats: int

    @property
    def complete(self) -> bool:
        """Every engine measured what it was asked for."""
        return all(row.error is None for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}
