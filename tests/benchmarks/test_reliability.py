"""A few stops and faults of each kind; the full number is run by hand."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "reliability.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="preloads a library")
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_nothing_is_lost_or_wrong(tmp_path: Path) -> None:
    counts = tmp_path / "counts.json"
    trials = [f"--{kind}={number}" for kind, number in KINDS.items()]
    done = subprocess.run(
        [sys.executable, SCRIPT, *trials, "--json", counts],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    results = json.loads(counts.read_text())["results"]
    assert {kind: found["trials"] for kind, found in results.items()} == KINDS
    assert results["kills"]["stops"] > 0


KINDS = {"kills": 6, "power": 3, "full": 3, "eio": 3, "short": 2}
