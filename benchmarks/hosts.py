"""Several processes on two simulated hosts make one output: the same bytes as one process?

    python benchmarks/hosts.py --processes 2 --kills 2

Two launchers (torchrun) play two hosts: each has an address of its own on the loopback network and
starts `--processes` processes; what they share is a folder.  In each of `--kills` more trials one
process, chosen at random, is killed at a random moment; the same launch again must end with the
same bytes.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fabricate
from contents import lasting_contents
from torch2mlx.conversion.journal import read_finished
from torch2mlx.packaging.lock import work_folder

CASE = ("--no-verify", "-q", "--max-shard-size", "30KB", "--quiet")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(source: Path, output: Path, processes: int) -> list[subprocess.Popen[bytes]]:
    """Start the launchers of both hosts."""
    port = str(free_port())
    return [
        subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", "--nnodes", "2",
                "--node-rank", str(host), "--nproc-per-node", str(processes),
                "--master-addr", "127.0.0.1", "--master-port", port,
                "--local-addr", f"127.0.0.{host + 1}",
                "-m", "torch2mlx", "convert", str(source), str(output), *CASE,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for host in range(2)
    ]  # fmt: skip


def children(process: int) -> list[int]:
    """Processes that a process has started, from any of its threads."""
    lists = Path(f"/proc/{process}/task").glob("*/children")
    return [int(word) for path in lists for word in path.read_text().split()]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2, help="on each host")
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--seed", type=int, default=2026)
    arguments = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    rng = random.Random(arguments.seed)
    usual = 0.0  # seconds of a launch
    with tempfile.TemporaryDirectory(prefix="hosts-") as root:
        source = fabricate.fabricate("mixtral-tiny", Path(root) / "source")
        one, place = Path(root) / "one", Path(root) / "place"
        command = [sys.executable, "-m", "torch2mlx", "convert", str(source), str(one), *CASE]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for trial in range(arguments.kills + 1):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            killed = ""
            start = time.monotonic()
            hosts = launch(source, place / "out", arguments.processes)
            if trial:
                after = rng.uniform(0.3, 1.0) * usual
                time.sleep(after)
                while not (ranks := [pid for host in hosts for pid in children(host.pid)]):
                    if all(host.poll() is not None for host in hosts):
                        sys.exit("the launchers ended before they started anything")
                    time.sleep(0.1)  # they are not so far yet
                os.kill(rng.choice(ranks), signal.SIGKILL)
                killed = f"one process killed after {time.monotonic() - start:.0f} s, "
            codes = [host.wait() for host in hosts]
            if not trial:
                usual = time.monotonic() - start
            if killed:
                left = sorted(p.name for p in place.iterdir())
                finished = len(read_finished(work_folder(place / "out")))
                killed += (
                    f"exit codes {codes}, {finished} files finished, "
                    f"destination {'there' if 'out' in left else 'absent'}, "
                )
                if "out" not in left:
                    codes = [h.wait() for h in launch(source, place / "out", arguments.processes)]
            same = (place / "out").exists() and lasting_contents(place / "out") == lasting_contents(
                one
            )
            print(
                f"{2 * arguments.processes} processes on 2 hosts: {killed}in the end "
                f"{'the bytes of one process' if same else f'NOT the same, exit codes {codes}'}",
                flush=True,
            )
            if not same:
                sys.exit(1)


if __name__ == "__main__":
    main()
