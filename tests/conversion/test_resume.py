"""A conversion that was stopped goes on where it stopped, to the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torch2mlx.conversion import executor
from torch2mlx.conversion.shard_file import ShardFile
from torch2mlx.packaging.staging import Staging
from torch2mlx.sources.local_files import PositionalFiles

ARGUMENTS = ("--no-verify", "-q", "--max-shard-size", "80KB")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


def _contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes; of the manifest what does not depend on the time."""
    files = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    manifest = json.loads(files["torch2mlx.json"])
    for changing in ("created", "measured"):
        del manifest[changing]
    files["torch2mlx.json"] = json.dumps(manifest).encode()
    return files


class _StopAfter:
    """Lets some files be finished, then raises."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, files: int, error: BaseException) -> None:
        self.made: list[str] = []
        finish = ShardFile.finish

        def counted(file: ShardFile) -> str:
            if len(self.made) == files:
                raise error
            self.made.append(file.path.name)
            return finish(file)

        monkeypatch.setattr(ShardFile, "finish", counted)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), 130),
        (OSError(28, "No space left on device"), 7),
        (OSError(5, "I/O"), 7),
    ],
)
def test_the_same_command_goes_on(
    error: BaseException,
    code: int,
    checkpoint: Callable[..., Path],
    run_cli: Callable[..., Any],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = checkpoint("llama", shard_size="100KB")
    assert run_cli("convert", source, place / "whole", *ARGUMENTS).code == 0
    with monkeypatch.context() as patch:
        first = _StopAfter(patch, 3, error)
        done = run_cli("convert", source, place / "out", *ARGUMENTS)
    assert done.code == code
    assert "3 finished files are kept" in done.message
    assert "Traceback" not in done.err
    assert not (place / "out").exists()
    with monkeypatch.context() as patch:
        second = _StopAfter(patch, 10**6, error)
        done = run_cli("convert", source, place / "out", *ARGUMENTS)
    assert done.code == 0
    assert "3 of" in done.message
    assert not set(first.made) & set(second.made), "a finished file was made again"
    assert _contents(place / "out") == _contents(place / "whole")
    assert sorted(p.name for p in place.iterdir()) == ["out", "whole"]


def test_other_options_need_restart(
    checkpoint: Callable[..., Path],
    run_cli: Callable[..., Any],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = checkpoint("llama")
    with monkeypatch.context() as patch:
        _StopAfter(patch, 1, KeyboardInterrupt())
        run_cli("convert", source, place / "out", *ARGUMENTS)
    other = (*ARGUMENTS, "--q-bits", "8")
    refused = run_cli("convert", source, place / "out", *other)
    assert refused.code == 7
    assert "option q_bits: not given, now 8" in refused.message
    assert "--restart" in refused.message
    assert run_cli("convert", source, place / "out", *other, "--restart").code == 0
    assert run_cli("convert", source, place / "whole", *other).code == 0
    assert _contents(place / "out") == _contents(place / "whole")


def test_a_changed_source_is_said_and_not_mixed(
    checkpoint: Callable[..., Path],
    run_cli: Callable[..., Any],
    copied: Callable[..., Path],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = copied("llama")
    with monkeypatch.context() as patch:
        _StopAfter(patch, 1, KeyboardInterrupt())
        run_cli("convert", source, place / "out", *ARGUMENTS)
    weights = source / "model.safetensors"
    times = weights.stat()
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    refused = run_cli("convert", source, place / "out", *ARGUMENTS)
    assert refused.code == 7
    assert "source file model.safetensors changed" in refused.message


def test_a_source_that_changes_during_the_run_is_noticed(
    run_cli: Callable[..., Any],
    copied: Callable[..., Path],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = copied("llama")
    opened = executor._Output.open

    def touch(output: Any, shard: Any) -> Any:
        os.utime(source / "model.safetensors")
        return opened(output, shard)

    monkeypatch.setattr(executor._Output, "open", touch)
    done = run_cli("convert", source, place / "out", *ARGUMENTS)
    assert done.code == 3
    assert "model.safetensors: changed while it was being converted" in done.message
    assert list(place.iterdir()) == []


ALSO = ("--also", "8bit", "--also", "bf16")


def test_further_outputs_equal_those_of_runs_of_their_own(
    checkpoint: Callable[..., Path], run_cli: Callable[..., Any], place: Path
) -> None:
    source = checkpoint("llama", shard_size="100KB")
    done = run_cli("convert", source, place / "out", *ARGUMENTS, *ALSO)
    assert done.code == 0
    assert sorted(p.name for p in place.iterdir()) == ["out", "out-8bit", "out-bf16"]
    alone = {
        "out": ARGUMENTS,
        "out-8bit": (*ARGUMENTS, "--q-bits", "8"),
        "out-bf16": ("--no-verify", "--max-shard-size", "80KB", "--dtype", "bfloat16"),
    }
    for name, arguments in alone.items():
        assert run_cli("convert", source, place / "alone", *arguments).code == 0
        assert _contents(place / name) == _contents(place / "alone"), name
        shutil.rmtree(place / "alone")


def test_the_source_is_read_once_for_all_outputs(
    checkpoint: Callable[..., Path],
    run_cli: Callable[..., Any],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = 0
    fill = PositionalFiles.fill

    def counted(files: PositionalFiles, block: np.ndarray[Any, Any], *rest: Any) -> None:
        nonlocal read
        read += block.nbytes
        fill(files, block, *rest)

    monkeypatch.setattr(PositionalFiles, "fill", counted)
    source = checkpoint("llama")
    assert run_cli("convert", source, place / "out", *ARGUMENTS[:2], *ALSO).code == 0
    size = sum(p.stat().st_size for p in source.glob("*.safetensors"))
    assert 0.9 * size < read < 1.01 * size


@pytest.mark.parametrize("published", [0, 1, 2])
def test_a_stop_between_outputs_is_put_right(
    published: int,
    checkpoint: Callable[..., Path],
    run_cli: Callable[..., Any],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, left = checkpoint("llama"), published
    publish = Staging.publish

    def stopping(staging: Staging) -> Path:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        return publish(staging)

    with monkeypatch.context() as patch:
        patch.setattr(Staging, "publish", stopping)
        assert run_cli("convert", source, place / "out", *ARGUMENTS, *ALSO).code == 130
    assert len(list(place.glob("out*"))) == published
    assert not (place / "out").exists()
    assert run_cli("convert", source, place / "out", *ARGUMENTS, *ALSO, "--json").code == 0
    assert sorted(p.name for p in place.iterdir()) == ["out", "out-8bit", "out-bf16"]


@pytest.mark.parametrize("also", ["1bit", "7bit", "int8"])
def test_a_wrong_name_of_a_further_output(
    also: str, run_cli: Callable[..., Any], place: Path
) -> None:
    done = run_cli("convert", place, place / "out", "--also", also)
    assert done.code == 2


def test_clean_lists_and_removes(
    checkpoint: Callable[..., Path],
    run_cli: Callable[..., Any],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        _StopAfter(patch, 2, KeyboardInterrupt())
        run_cli("convert", checkpoint("llama"), place / "out", *ARGUMENTS)
    (place / ".other").mkdir()
    (listed,) = json.loads(run_cli("clean", place, "--json").out)
    assert listed["destination"] == str(place / "out")
    assert (listed["finished"], listed["in_use"], listed["removed"]) == (2, False, False)
    assert run_cli("clean", place / "out", "--yes").code == 0
    assert [p.name for p in place.iterdir()] == [".other"]
    assert "nothing was left" in run_cli("clean", place).out


_SLOW = """
import itertools, os, sys, time
from torch2mlx.conversion.blocks import Part
make, begun, go_on = Part.pieces, itertools.count(1), sys.argv.pop(1)
def slow(*arguments):
    held = next(begun) > 8
    os.write(1, b"block\\n")
    time.sleep(0.1)
    while held and not os.path.exists(go_on):
        time.sleep(0.02)
    return make(*arguments)
Part.pieces = slow
from torch2mlx.cli import run
run()
"""


def test_ctrl_c_stops_within_two_seconds_and_a_second_run_is_refused(
    checkpoint: Callable[..., Path], run_cli: Callable[..., Any], place: Path
) -> None:
    source = checkpoint("llama")
    command = ["convert", str(source), str(place / "out"), *ARGUMENTS]
    go_on = place.parent / "go-on"  # however long the second run takes, the first is at work
    child = subprocess.Popen(
        [sys.executable, "-c", _SLOW, str(go_on), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what it runs in the background with Ctrl-C ignored.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert child.stdout is not None
    for _ in range(8):
        assert child.stdout.readline() == "block\n"
    refused = run_cli(*command)
    assert refused.code == 7
    assert f"process {child.pid} on" in refused.message
    start = time.monotonic()
    child.send_signal(signal.SIGINT)
    go_on.touch()  # after the signal, which would else find it finished now and then
    _, errors = child.communicate(timeout=20)
    assert time.monotonic() - start < 2
    assert child.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert run_cli(*command).code == 0
    shutil.rmtree(place / "out")
