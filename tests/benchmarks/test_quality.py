"""The benchmark runs both sides in processes of their own and measures what they wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_calibration_is_measured_beside_rounding_to_nearest(checkpoint, tmp_path) -> None:
    text, other = tmp_path / "text.txt", tmp_path / "other.txt"
    text.write_text("the sun rises and the stars go out over the hills of the north " * 300)
    other.write_text("a port in the north has ships, and a light that goes out " * 100)
    command = [
        sys.executable, ROOT / "benchmarks/quality.py", checkpoint("llama_tied", flat=True),
        "--out", tmp_path / "out", "--test", text, "--bits", "4", "--targets", "", "--windows", "4",
        "--length", "64", "--prompts", "2", "--tokens", "256", "--methods", "RTN$|4-bit calibrated",
        "--calibration", text, "--calibration", other, "--jobs", "2",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run(list(map(str, command)), env=environment, check=True, capture_output=True)
    records = json.loads((tmp_path / "out/records.json").read_text())
    rounded = records["mlx-lm 4-bit RTN"]
    mine = records["torch2mlx 4-bit calibrated"]
    assert mine["bits_per_weight"] == pytest.approx(rounded["bits_per_weight"])
    for record in (mine, rounded):
        assert 0 < record["texts"]["text"]["kl"] < 1
    assert mine["mlx_difference"] < 1e-4
    assert "torch2mlx 4-bit calibrated, embedding RTN" in (tmp_path / "out/quality.md").read_text()
    drawn = (tmp_path / "out/quality.svg").read_text()
    assert "mean KL" in drawn or "<path" in drawn
