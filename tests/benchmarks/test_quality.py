"""The benchmark gives both converters the same figures where they write the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_rounding_to_nearest_costs_the_same_with_both_converters(checkpoint, tmp_path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the sun rises and the stars go out over the hills of the north " * 300)
    result = tmp_path / "rows.json"
    command = [
        sys.executable, ROOT / "benchmarks/quality.py", checkpoint("llama_tied", flat=True),
        "--test", text, "--windows", "4", "--only", "RTN", "--json", result,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run(list(map(str, command)), env=environment, check=True, capture_output=True)
    peer, mine = json.loads(result.read_text())
    assert peer["method"].startswith("mlx-lm")
    assert mine["bits_per_weight"] == pytest.approx(peer["bits_per_weight"])
    assert mine["kl"] == pytest.approx(peer["kl"], rel=1e-3)
    assert mine["kl"] > 0
