"""Figures beside the manifest: from what the gate saw to the file and back."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from torch2mlx.evidence import memory as memory_module
from torch2mlx.evidence.memory import MemoryTrace
from torch2mlx.evidence.record import build_evidence, read_evidence, write_evidence
from torch2mlx.progress import Silent
from torch2mlx.verification.audit_report import TensorCheck
from torch2mlx.verification.details import Details, Sample, thin_logits


def _output(name: str, *shape: int) -> Any:
    return SimpleNamespace(name=name, expr=SimpleNamespace(shape=shape, size=int(np.prod(shape))))


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    windows = tuple(tuple(w) for w in generator.exponential(0.1, (3, 50)).tolist())
    checks = (
        TensorCheck("layers.0.up.weight", 36, "quantized", ok=True, max_error=0.5, rms=0.1),
        TensorCheck("norm.weight", 8, "exact", ok=True),
        TensorCheck("layers.1.up.weight", 36, "quantized", ok=True, rms=float("inf")),
    )
    outputs = [_output("layers.0.up.weight", 8, 8), _output("norm.weight", 4),
               _output("layers.1.up.weight", 8, 8)]  # fmt: skip
    details = Details(checks, windows, (Sample("a", "b", "c", 3, 1),))
    write_evidence(tmp_path, build_evidence(details, outputs, None))
    json.loads((tmp_path / "torch2mlx/evidence.json").read_text(), parse_constant=pytest.fail)
    found = read_evidence(tmp_path)
    assert found is not None
    assert [(m.name, m.nbytes, m.elements, m.rms) for m in found.modules] == [
        ("layers.0.up", 36, 64, 0.1), ("layers.1.up", 36, 64, None),
    ]  # fmt: skip
    assert found.unchanged == 1
    assert found.samples == details.samples
    divergence = found.divergence
    assert divergence is not None
    every = np.concatenate([np.array(w) for w in windows])
    assert sum(divergence.counts) == 150
    assert divergence.median == pytest.approx(np.median(every), rel=1e-3)
    assert divergence.positions[7] == pytest.approx(np.mean([w[7] for w in windows]), rel=1e-3)
    edges = divergence.edges
    for low, high, count in zip(edges, edges[1:], divergence.counts, strict=False):
        assert count == ((every >= low) & (every < high)).sum()


def test_folders_without_a_record_have_none(tmp_path: Path) -> None:
    assert read_evidence(tmp_path) is None


def test_memory_keeps_peaks_in_bounded_room(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([10, *range(100, 1100), *[10**6], *range(100, 10**5)])
    monkeypatch.setattr(memory_module, "resident_bytes", lambda: next(readings))
    trace = MemoryTrace(Silent())
    for _ in range(2000):
        trace._read()
    with trace.stage("Converting") as advance:
        advance(1)
    record = trace.record(5)
    assert len(record.times) <= 240
    assert max(record.resident) == 10**6  # one reading of two thousand
    assert list(record.times) == sorted(record.times)
    assert [stage.title for stage in record.stages] == ["Converting"]


def test_memory_is_read_while_others_work() -> None:
    with MemoryTrace(Silent()) as trace:
        time.sleep(0.2)
        assert len(trace.record(0).times) >= 4
    assert not trace._thread.is_alive()


def test_kept_logits_are_spread_over_the_vocabulary() -> None:
    logits = np.arange(2 * 10_000, dtype=np.float64).reshape(2, 10_000)
    columns, kept = thin_logits(logits)
    assert len(columns) <= 4096
    assert (columns[0], kept.dtype) == (0, np.float32)
    assert (kept == logits[:, columns]).all()
    assert thin_logits(logits[:, :300])[1].shape == (2, 300)
