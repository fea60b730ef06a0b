"""Two processes on two cores against one process on one core: how much faster is a conversion?

    python benchmarks/scaling.py --pairs 3

A checkpoint of a real shape is converted to 4 bits, in turns by one process that may use one core
and by two (torchrun) that may use a core each.  Wall and processor seconds are those of reading,
quantizing and writing: imports, which every process pays, and packaging are left out.  A process
that may use all cores does so by itself with threads; several are for several hosts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import fabricate
from hosts import free_port
from processes import warm

HERE = Path(__file__).resolve()


@dataclass(frozen=True)
class Turn:
    """Seconds from the first process's start to the last one's end, and of the CPU for each."""

    wall: float
    cpu: tuple[float, ...]


def run_rank(folder: Path, arguments: list[str]) -> None:
    """Be one process: keep to one core, convert, and note what writing the weights took."""
    rank = int(os.environ.get("RANK", "0"))
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    from torch2mlx.cli import run
    from torch2mlx.conversion import executor

    execute = executor.execute_together

    def timed(*positional: Any, **named: Any) -> None:
        start, cpu = time.time(), time.process_time()
        execute(*positional, **named | {"processes": len(cores)})
        spent = {"start": start, "end": time.time(), "cpu": time.process_time() - cpu}
        (folder / f"{rank}.json").write_text(json.dumps(spent))

    executor.execute_together = timed
    sys.argv = ["torch2mlx", *arguments]
    run()


def convert(source: Path, place: Path, processes: int, shard: str) -> Turn:
    """One conversion by so many processes."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    warm(source)
    os.sync()
    launcher = [
        "-m", "torch.distributed.run", "--nproc-per-node", str(processes),
        "--master-port", str(free_port()),
    ]  # fmt: skip
    command = [
        sys.executable, *(launcher if processes > 1 else ()), str(HERE), "rank", str(place),
        "convert", str(source), str(place / "out"), "-q", "--no-verify", "--quiet",
        "--max-shard-size", shard,
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    told = [json.loads((place / f"{rank}.json").read_text()) for rank in range(processes)]
    wall = max(t["end"] for t in told) - min(t["start"] for t in told)
    return Turn(wall, tuple(t["cpu"] for t in told))


def main() -> None:
    """Command line."""
    if sys.argv[1:2] == ["rank"]:
        run_rank(Path(sys.argv[2]), sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="llama-1", choices=sorted(fabricate.SHAPES))
    parser.add_argument("--shard", default="38MB", help="size of the output's weight files")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--data", type=Path, default=HERE.parent / "data")
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    source = arguments.data / arguments.model
    if not source.exists():
        fabricate.fabricate(arguments.model, source)
    ratios, balance = [], []
    with tempfile.TemporaryDirectory(prefix="scaling-", dir=arguments.data) as root:
        place = Path(root) / "place"
        for pair in range(arguments.pairs):
            order = (1, 2) if pair % 2 == 0 else (2, 1)
            turns = {count: convert(source, place, count, arguments.shard) for count in order}
            one, two = turns[1], turns[2]
            ratios.append(one.wall / two.wall)
            balance.append(sum(one.cpu) / max(two.cpu))
            print(
                f"pair {pair + 1}: one process {one.wall:.1f} s wall, {one.cpu[0]:.1f} s CPU; two "
                f"{two.wall:.1f} s wall, {' + '.join(f'{s:.1f}' for s in two.cpu)} s CPU; "
                f"{ratios[-1]:.2f} times by wall, {balance[-1]:.2f} by the busier one's CPU",
                flush=True,
            )
    print(
        f"two processes: by wall best {max(ratios):.2f}, median {median(ratios):.2f}; by CPU best "
        f"{max(balance):.2f}, median {median(balance):.2f}"
    )


if __name__ == "__main__":
    main()
