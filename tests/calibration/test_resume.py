"""Processes that are killed while they calibrate or distil, and two at the same destination."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from torch2mlx.calibration.conversion import calibration_folder
from torch2mlx.packaging.leftovers import find_leftovers
from torch2mlx.packaging.lock import Lock

# A run that kills itself, as `kill -9` would, before a layer or before a step of distillation.
_DEADLY = """
import os, signal, sys
from torch2mlx.calibration import distillation, engine
layer, step = int(sys.argv.pop(1)), int(sys.argv.pop(1))

def deadly(owner, name, at, number):
    original = getattr(owner, name)
    def method(self, *args):
        if args[number] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args)
    setattr(owner, name, method)

deadly(engine._Walk, "_layer", layer, 0)
deadly(distillation._Run, "_step", step, 1)
from torch2mlx.cli import run
run()
"""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the sun rises and the stars go out over the hills of the north " * 120)
    return path


@pytest.mark.slow
def test_killed_calibration_and_distillation_give_the_same_bytes(
    checkpoint, run_cli, tmp_path: Path, text: Path, read_weights
) -> None:
    command = [
        "convert", checkpoint("llama_tied"), "DST", "-q", "--q-bits", "3", "--calibrate",
        "--distill", "--calibration-text", text, "--calibration-tokens", "1024", "--max-context",
        "64", "--no-verify", "--quiet",
    ]  # fmt: skip

    def run(name: str, layer: int, step: int) -> int:
        arguments = [str(tmp_path / name) if a == "DST" else str(a) for a in command]
        return subprocess.run(
            [sys.executable, "-c", _DEADLY, str(layer), str(step), *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False, timeout=300,
        ).returncode  # fmt: skip

    assert run("whole", -1, -1) == 0
    assert run("killed", 2, -1) == -signal.SIGKILL
    folder = calibration_folder(tmp_path / "killed")
    assert (folder / "layers" / "layer-00001").is_dir()
    assert not (folder / "layers" / "layer-00002").exists()
    assert run("killed", -1, 5) == -signal.SIGKILL
    assert (folder / "layers" / "distillation.pt").exists()
    [left] = [leftover for leftover in find_leftovers(tmp_path) if leftover.path == folder]
    assert not left.in_use
    # Layers are not calibrated again, nor the first steps taken again: either would kill it.
    assert run("killed", 0, 0) == 0
    assert not folder.exists()
    assert read_weights(tmp_path / "killed") == read_weights(tmp_path / "whole")


def test_one_run_at_a_time_calibrates_for_a_destination(
    checkpoint, run_cli, tmp_path: Path, text: Path
) -> None:
    command = (
        "convert", checkpoint("llama_tied"), tmp_path / "out", "-q", "--calibrate",
        "--calibration-text", text, "--calibration-tokens", "128", "--max-context", "64",
        "--no-verify", "--quiet",
    )  # fmt: skip
    other = Lock(calibration_folder(tmp_path / "out"))
    other.acquire()
    refused = run_cli(*command)
    assert refused.code == 7
    assert "another run" in refused.message
    assert "--wait" in refused.message
    assert other.path.exists()
    other.release()
    assert run_cli(*command).code == 0
    assert not calibration_folder(tmp_path / "out").exists()


def test_a_refused_text_leaves_nothing(checkpoint, run_cli, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("too short")
    run = run_cli(
        "convert", checkpoint("llama_tied"), tmp_path / "out", "-q", "--calibrate",
        "--calibration-text", short, "--no-verify", "--quiet",
    )  # fmt: skip
    assert run.code == 2
    assert not calibration_folder(tmp_path / "out").exists()
