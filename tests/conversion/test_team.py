"""Several processes for one output: who makes what, and what a failure does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from torch2mlx.conversion.team import ALONE, Team, deal_out, find_team
from torch2mlx.errors import DestinationError, NumericError, OptionError
from torch2mlx.planning.shards import ShardPlan


class Memory:
    """A store within a process."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def set(self, key: str, value: str) -> None:
        self.values[key] = value.encode()

    def get(self, key: str) -> bytes:
        return self.values[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)


def test_without_a_launcher_a_process_is_alone() -> None:
    assert find_team({}) is ALONE
    assert find_team({"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "x"}) is ALONE
    with pytest.raises(OptionError, match=r"WORLD_SIZE.*'two'; start all processes with torchrun"):
        find_team({"WORLD_SIZE": "two"})
    ALONE.check()
    ALONE.hear_all("anything")


def test_a_process_that_was_killed_on_another_host_is_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"_BEAT": 0.02, "_SILENCE": 0.4, "_ARRIVAL": 0.8, "_POLL": 0.01, "_PATIENCE": 0.1}
    for name, seconds in settings.items():
        monkeypatch.setattr(f"torch2mlx.conversion.team.{name}", seconds)
    store = Memory()
    first = Team(0, 3, 2, store)
    start = time.monotonic()
    with first.stops_together(), Team(1, 3, 2, store).stops_together():
        Team(2, 3, 1, store).tell("beat/2", 1)  # and nothing more
        with pytest.raises(DestinationError, match="process 2 of 3 has given no sign of life"):
            first.hear("written/2")
        assert 0.4 < time.monotonic() - start < 0.8
    with pytest.raises(DestinationError, match="process 1 of 2"):  # never came
        Team(0, 2, 1, Memory()).hear("written/1")
    store = Memory()
    store.set("left/1", "true")  # has done its part
    threading.Timer(1.2, store.set, ("published", '"x"')).start()
    assert Team(0, 2, 1, store).hear("published") == "x"


def test_a_launcher_that_is_gone_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first host ended before this process began, and its store with it."""
    monkeypatch.setattr("torch2mlx.conversion.team._STORE_OF_LAUNCHER", timedelta(seconds=0.5))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        launch = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(unused.getsockname()[1]),
            "RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True",
        }  # fmt: skip
        for name, value in launch.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(DestinationError, match="cannot be reached any more"):
            find_team()
        monkeypatch.delenv("MASTER_PORT")
        with pytest.raises(OptionError, match=r"MASTER_PORT .*unset these variables"):
            find_team()


def test_bytes_are_dealt_out_evenly() -> None:
    shards = [ShardPlan(f"{i}", b"", {}, size) for i, size in enumerate([5, 50, 20, 30, 40, 5])]
    ranks = deal_out(shards, 3)
    loads = [sum(s.nbytes for s, r in zip(shards, ranks, strict=True) if r == k) for k in range(3)]
    assert sorted(loads) == [50, 50, 50]


def test_a_failure_reaches_those_who_wait() -> None:
    store = Memory()
    first, second = Team(0, 2, 2, store), Team(1, 2, 2, store)
    with pytest.raises(NumericError), second.stops_together():
        raise NumericError("NaN in x")
    with pytest.raises(DestinationError, match="process 1 of 2 stopped: NaN in x"):
        first.hear("written/1")
    with pytest.raises(DestinationError, match="NaN in x"):
        first.check()


def _launch(arguments: Sequence[object], size: int) -> list[subprocess.CompletedProcess[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "torch2mlx", "convert", *map(str, arguments)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    done = []
    for child in children:
        out, err = child.communicate(timeout=300)
        done.append(subprocess.CompletedProcess(child.args, child.returncode, out, err))
    return done


@pytest.mark.slow
def test_two_processes_write_what_one_writes(
    checkpoint: Callable[..., Path], run_cli: Callable[..., Any], tmp_path: Path
) -> None:
    source = checkpoint("mixtral")
    options = ("--no-verify", "-q", "--max-shard-size", "80KB")
    assert run_cli("convert", source, tmp_path / "one", *options).code == 0
    first, second = _launch([source, tmp_path / "two", *options, "--json"], 2)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert json.loads(first.stdout)["destination"] == str(tmp_path / "two")
    assert second.stdout == ""
    for path in (tmp_path / "one").iterdir():
        if path.is_file() and path.name != "torch2mlx.json":
            assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


_SLOWLY = """
import os, time
from torch2mlx.conversion import executor
write = executor.ShardFile.finish
def slow(file):
    time.sleep(1.0)
    return write(file)
executor.ShardFile.finish = slow
from torch2mlx.cli import run
run()
"""
_LAUNCHERS = {
    "accelerate": ("accelerate.commands.launch", "--num_processes", "2", "--multi_gpu"),
    "torchrun": ("torch.distributed.run", "--nproc-per-node", "2"),
}


def _ranks(launcher: int) -> dict[int, int]:
    """Process by rank, of what a launcher has started."""
    lists = Path(f"/proc/{launcher}/task").glob("*/children")
    found = {}
    for process in (int(word) for path in lists for word in path.read_text().split()):
        with suppress(OSError):
            words = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
            rank = next((w[5:] for w in words if w.startswith(b"RANK=")), None)
            if rank is not None:
                found[int(rank)] = process
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("launcher", _LAUNCHERS)
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_stops_the_launch_and_the_next_one_goes_on(
    checkpoint: Callable[..., Path],
    run_cli: Callable[..., Any],
    tmp_path: Path,
    launcher: str,
    killed: int,
) -> None:
    source, place = checkpoint("llama"), tmp_path / "place"
    place.mkdir()
    options = ("--no-verify", "-q", "--max-shard-size", "30KB", "--quiet")
    assert run_cli("convert", source, tmp_path / "one", *options).code == 0
    (tmp_path / "slowly.py").write_text(_SLOWLY)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = f"{probe.getsockname()[1]}"
    module, *flags = _LAUNCHERS[launcher]
    flag = "--main_process_port" if launcher == "accelerate" else "--master-port"
    start = [sys.executable, "-m", module, *flags, flag, port, "-m"]
    convert = ["convert", str(source), str(place / "out"), *options]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}

    running = subprocess.Popen(
        [*start, "slowly", *convert], env=environment, text=True, stderr=subprocess.PIPE
    )
    finished = 0
    while finished < 3 and running.poll() is None:
        journals = place.glob(".out.torch2mlx-*/journal*")
        finished = sum(path.read_bytes().count(b'"file"') for path in journals)
        time.sleep(0.05)
    os.kill(_ranks(running.pid)[killed], signal.SIGKILL)
    _, told = running.communicate(timeout=200)
    assert running.returncode != 0
    assert f"process {1 - killed} of 2 was ended by its launcher" in told
    assert not (place / "out").exists()

    done = subprocess.run([*start, "torch2mlx", *convert], env=environment, check=False)
    assert done.returncode == 0
    assert [path.name for path in place.iterdir()] == ["out"]
    for path in (tmp_path / "one").iterdir():
        if path.is_file() and path.name != "torch2mlx.json":
            assert path.read_bytes() == (place / "out" / path.name).read_bytes(), path.name
