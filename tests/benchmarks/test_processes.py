from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import processes
from processes import Usage, measure, middle


def test_the_peak_is_the_childs(tmp_path: Path) -> None:
    # In a process of its own: a child's peak starts at its parent's size, and pytest is large.
    code = """
import subprocess
import sys
from pathlib import Path
from processes import measure
def peak(code):
    return measure([sys.executable, "-c", code], Path(sys.argv[1])).rss
print(peak("x = b'x' * 300_000_000; del x") - peak("pass"))
"""
    out = subprocess.check_output(
        [sys.executable, "-c", code, tmp_path / "log"],
        env={"PYTHONPATH": str(Path(processes.__file__).parent)},
    )
    # The baseline holds the measuring process: a few MB more than a bare interpreter.
    assert 285e6 < int(out) < 310e6


def test_time_of_all_threads_and_children_counts(tmp_path: Path) -> None:
    burn = "import time; t = time.process_time()\nwhile time.process_time() - t < 0.3: pass"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"
    assert measure([sys.executable, "-c", code], tmp_path / "log").cpu >= 0.3


def test_a_failure_shows_the_end_of_the_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; print('no room'); sys.exit(7)"]
    with pytest.raises(RuntimeError, match=r"exit status 7\nno room"):
        measure(command, tmp_path / "log")


def test_middle_takes_medians_and_the_largest_peak() -> None:
    runs = [Usage(1, 5, 10, 2), Usage(9, 1, 30, 9), Usage(2, 3, 20, 3)]
    assert middle(runs) == Usage(2, 3, 30, 3)
