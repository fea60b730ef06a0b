"""Damaged and hostile checkpoints against torch2mlx: what may come out is an error of its own.

    python benchmarks/fuzz.py --cases 20000

Each case runs in a forked process with all libraries loaded: the checkpoint is opened, inspected,
planned, and every tensor is read; every twentieth is also converted as a whole.  A finding is an
exception of another kind, a crash, more than 10 seconds of processor time or two minutes in
all (machines are busy), more than 1 GB of memory above the
process's footprint, a file outside of the output, or a payload that ran.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mutations import make_seeds, mutate_case

__all__ = ["Outcome", "run_case", "try_checkpoint"]

SECONDS = 10  # of processor time
WALL = 120  # seconds after which a silent process is ended
MEMORY = 1 << 30
CONVERTED = 20  # every so many cases the whole conversion runs


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Attributes:
        number: of the case.
        format: what was damaged.
        result: "read", an error class of torch2mlx, or a finding that begins with "!".
        detail: message, or the end of a traceback.
        seconds: of processor time.
    """

    number: int
    format: str
    result: str
    detail: str
    seconds: float

    @property
    def finding(self) -> bool:
        """True for what must not happen."""
        return self.result.startswith("!")


def try_checkpoint(folder: Path, output: Path | None = None) -> str:
    """Open, inspect, plan and read a checkpoint; with `output`, convert it.

    Returns:
        "read", or the name of the torch2mlx error.

    Raises:
        Exception: whatever else comes out.
    """
    import torch2mlx
    from torch2mlx.architectures.bounds import check_counts
    from torch2mlx.architectures.port import load_port
    from torch2mlx.errors import Torch2MLXError
    from torch2mlx.inspection import inspect_checkpoint
    from torch2mlx.planning.plan import build_plan
    from torch2mlx.sources import open_checkpoint

    try:
        if output is not None:
            torch2mlx.convert(folder, output, verify=False)
            return "read"
        checkpoint = open_checkpoint(folder)
        json.dumps(inspect_checkpoint(checkpoint).to_dict())
        check_counts(checkpoint.config, checkpoint.state)
        port = load_port(checkpoint.config)
        build_plan(checkpoint, port, dtype=None, quantize=None, max_shard_size=1 << 30)
        for name in checkpoint.source.tensors:
            checkpoint.source.read(name)
        checkpoint.source.close()
    except Torch2MLXError as error:
        str(error).encode()  # a message that no terminal can show is a finding
        return type(error).__name__
    return "read"


def _fingerprint(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


def run_case(number: int, seed: int, seeds: Path, room: Path) -> Outcome:
    """Run one case in this process, which may not survive it."""
    place = room / str(number)
    shutil.rmtree(place, ignore_errors=True)  # of a process that was killed
    place.mkdir()
    source, output = place / "source", place / "out"
    name, kind = mutate_case(number, seed, seeds, source)
    before = _fingerprint(place)
    start, footprint = time.process_time(), _peak()
    signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        whole = number % CONVERTED == CONVERTED - 1
        result, detail = try_checkpoint(source, output if whole else None), kind
    except TimeoutError:
        result, detail = "!slow", traceback.format_exc(limit=-3)
    except BaseException as error:
        result, detail = f"!{type(error).__name__}", traceback.format_exc(limit=-4)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    seconds = time.process_time() - start
    left = {p for p in _fingerprint(place) - before if not Path(p).is_relative_to(output)}
    if left:
        result, detail = "!files", " ".join(sorted(left))
    if _peak() - footprint > MEMORY:
        result, detail = "!memory", f"{(_peak() - footprint) / 1e9:.1f} GB"
    shutil.rmtree(place, ignore_errors=True)
    return Outcome(number, name, result, detail, seconds)


def _too_long(*_: Any) -> None:
    raise TimeoutError


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _load_libraries(seeds: Path) -> None:
    """Import all that cases need, so that forked processes share it."""
    for kind in ("safetensors", "torch", "gguf", "mlx"):
        found = try_checkpoint(seeds / kind)
        if found != "read":
            raise SystemExit(f"the undamaged {kind} checkpoint is not read: {found}")


def _batch(numbers: list[int], seed: int, seeds: Path, room: Path, pipe: Any) -> None:
    os.setpgrp()
    sys.stdout = sys.stderr = io.StringIO()  # what libraries say of damaged files
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in numbers:
        pipe.send(("begins", number))
        pipe.send(("ended", run_case(number, seed, seeds, room)))
    pipe.close()
    os._exit(0)


def run(first: int, cases: int, seed: int, seeds: Path, room: Path, batch: int) -> list[Outcome]:
    """Run cases one after the other, in batches of one process each."""
    outcomes: list[Outcome] = []
    context = multiprocessing.get_context("fork")
    number = first
    shown = time.monotonic()
    while number < first + cases:
        numbers = list(range(number, min(number + batch, first + cases)))
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=_batch, args=(numbers, seed, seeds, room, send))
        process.start()
        send.close()
        current: int | None = None
        try:
            while receive.poll(WALL):
                what, value = receive.recv()
                if what == "begins":
                    current = value
                else:
                    outcomes.append(value)
                    current, number = None, value.number + 1
                    if value.finding:  # the process may be in any state
                        print(ascii(value), file=sys.stderr, flush=True)
                        break
        except EOFError:
            pass
        process.kill()
        process.join()
        if current is not None:
            result = f"!exit {process.exitcode}"
            outcomes.append(Outcome(current, "?", result, "the process hung or crashed", SECONDS))
            number = current + 1
        if time.monotonic() - shown > 20:
            shown = time.monotonic()
            found = sum(o.finding for o in outcomes)
            print(f"{len(outcomes):,} cases, {found} findings", file=sys.stderr, flush=True)
    return outcomes


def main() -> int:
    """Run the cases and print a table; exit code 1 where there is a finding."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=50, help="cases a process")
    parser.add_argument("--json", type=Path, help="write every finding to this file")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        seeds, room = Path(temporary) / "seeds", Path(temporary) / "room"
        room.mkdir()
        # MLX's threads do not survive a fork, so the parent must never evaluate an array.
        maker = multiprocessing.get_context("fork").Process(target=make_seeds, args=(seeds,))
        maker.start()
        maker.join()
        _load_libraries(seeds)
        outcomes = run(options.first, options.cases, options.seed, seeds, room, options.batch)
    table: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        table.setdefault(outcome.format, Counter())[outcome.result] += 1
    for name, counts in sorted(table.items()):
        listed = ", ".join(f"{result} {count}" for result, count in counts.most_common())
        print(f"{name:12} {sum(counts.values()):6,}  {listed}")
    findings = [outcome for outcome in outcomes if outcome.finding]
    slowest = max((o.seconds for o in outcomes), default=0.0)
    print(f"{len(outcomes):,} cases, {len(findings)} findings, slowest {slowest:.1f} s")
    for outcome in findings[:20]:
        shown = ascii(outcome.detail).replace("\\n", "\n")  # names may be half a surrogate
        print(f"\ncase {outcome.number} ({outcome.format}): {outcome.result}\n{shown}")
    if options.json:
        options.json.write_text(json.dumps([asdict(o) for o in findings], indent=1))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
