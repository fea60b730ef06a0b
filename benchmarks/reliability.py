"""Stops and faults: does every output come out whole, or not at all, and does the next run go on?

    python benchmarks/reliability.py --kills 200 --power 50 --full 50 --eio 50 --short 50

Tiny checkpoints are converted into several weight files.  Each trial makes one output:

    kills   SIGKILL at a random moment, or in place of a random call that changes files
    power   the same, then what no sync had put to disk is zeroed, cut or removed
    full    from a random call on the disk is full (ENOSPC)
    eio     one random call fails with EIO
    short   from a random call on, writes write only a part of their data

and, where the run was stopped, repeats the same command, stopped again up to twice, until it ends.
A trial passes if the destination never exists unless it is complete; if no finished weight file is
made again; and if at the end every file equals that of a run which nothing stopped (of the
manifest, all but `created` and `measured`) and nothing else lies beside it.

The faults come from a small library (faults.c, built with `cc`) that is preloaded into this
program; each run is a fork of it, so that imports are paid once.  Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fabricate
from contents import lasting_contents

HERE = Path(__file__).resolve().parent
OFF, KILL, FULL, EIO, SHORT = range(5)
SOURCE_SHARD = 40_000  # bytes: several files in the source too

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "copy": ("llama-tiny", {"max_shard_size": "40KB"}),
    "4-bit": ("llama-tiny", {"quantize": True, "max_shard_size": "12KB"}),
    "experts": ("mixtral-tiny", {"quantize": True, "max_shard_size": "30KB"}),
    "calibrated": (
        "llama-tiny",
        {"quantize": True, "calibrate": True, "calibration_tokens": 256, "max_shard_size": "12KB"},
    ),
}


@dataclass(frozen=True)
class Fault:
    """What happens to a run.

    Attributes:
        kind: OFF, KILL, FULL, EIO or SHORT.
        at: number of the call, from 1.
        after: seconds until SIGKILL from outside instead, or None.
        power: whether a kill takes with it what was not on the disk.
    """

    kind: int = OFF
    at: int = 0
    after: float | None = None
    power: bool = False


@dataclass
class Ended:
    """How a run ended.

    Attributes:
        killed: by a signal.
        error: type of the exception, or None.
        message: its text.
        made: weight files that were made.
        calls: calls that changed files.
        seconds: wall time.
    """

    killed: bool = False
    error: str | None = None
    message: str = ""
    made: list[str] = field(default_factory=list)
    calls: int = 0
    seconds: float = 0.0


class Lab:
    """Sources, references and the place where outputs are made."""

    def __init__(self, root: Path, library: ctypes.CDLL, cases: list[str]) -> None:
        self.root = root
        self.cases = cases
        self.library = library
        self.place = root / "place"
        self.place.mkdir()
        self.report = root / "unsynced"
        fabricate.SHARD_BYTES = SOURCE_SHARD
        self.sources = {
            name: fabricate.fabricate(name, root / "sources" / name)
            for name in sorted({CASES[case][0] for case in cases})
        }
        self.reference: dict[str, dict[str, bytes]] = {}
        self.usual: dict[str, Ended] = {}

    def prepare(self) -> None:
        """One run of each case that nothing stops."""
        for case in self.cases:
            self.usual[case] = ended = self.run(case, Fault())
            if ended.error:
                sys.exit(f"{case}: {ended.error}: {ended.message}")
            self.reference[case] = lasting_contents(self.place / "out")
            shutil.rmtree(self.place / "out")
            print(
                f"{case}: {len(ended.made)} weight files, {ended.calls} calls that change files, "
                f"{ended.seconds:.2f} s"
            )

    def run(self, case: str, fault: Fault) -> Ended:
        """Convert in a fork of this process."""
        self.report.unlink(missing_ok=True)
        read, write = os.pipe()
        start = time.monotonic()
        child = os.fork()
        if not child:
            os.close(read)
            self._convert(case, fault, write)
        os.close(write)
        if fault.after is not None:
            time.sleep(fault.after)
            os.kill(child, signal.SIGKILL)
        with open(read, "rb") as pipe:
            told = pipe.read()
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            return Ended(killed=True, seconds=time.monotonic() - start)
        return Ended(**json.loads(told), seconds=time.monotonic() - start)

    def _convert(self, case: str, fault: Fault, write: int) -> None:
        from torch2mlx import convert
        from torch2mlx.conversion import direct
        from torch2mlx.conversion.shard_file import ShardFile

        direct._CHUNK = 4096  # the files are small, and their writes are to pass the page cache
        source, options = CASES[case]
        told: dict[str, Any] = {"made": []}
        finish = ShardFile.finish

        def counted(file: ShardFile) -> str:
            told["made"].append(file.path.name)
            return finish(file)

        ShardFile.finish = counted  # type: ignore[method-assign]
        self.library.fault_arm(
            fault.kind,
            fault.at,
            fault.at * 977 + 1,
            os.fsencode(self.place),
            os.fsencode(self.report),
        )
        try:
            convert(self.sources[source], self.place / "out", verify=False, **options)
        except BaseException as error:
            told |= {"error": type(error).__name__, "message": str(error)}
        told["calls"] = self.library.fault_calls()
        self.library.fault_arm(OFF, 0, 0, b"", b"")
        os.write(write, json.dumps(told).encode())
        os._exit(0)

    def lose_power(self, rng: random.Random) -> int:
        """Damage what had not reached the disk; returns how many files that were."""
        if not self.report.exists():
            return 0
        names = [Path(line) for line in self.report.read_text().splitlines()]
        files = [path for path in names if path.is_file()]
        for path in files:
            size = path.stat().st_size
            how = rng.choice(("zero", "cut", "remove"))
            if how == "remove":
                path.unlink()
            elif how == "cut":
                os.truncate(path, rng.randrange(size + 1))
            else:
                start = rng.randrange(size + 1)
                with path.open("r+b") as file:
                    file.seek(start)
                    file.write(bytes(rng.randrange(size - start + 1)))
        return len(files)


EXPECTED_ERRORS = {FULL: ("DestinationError",), EIO: ("DestinationError",)}


def trial(lab: Lab, case: str, draw: Callable[[Ended], Fault], rng: random.Random) -> list[str]:
    """Make one output in spite of faults; returns what went wrong, and counts what happened."""
    from torch2mlx.conversion.journal import read_finished
    from torch2mlx.packaging.lock import work_folder

    shutil.rmtree(lab.place)
    lab.place.mkdir()
    out, reference, usual = lab.place / "out", lab.reference[case], lab.usual[case]
    problems: list[str] = []
    stops = rng.randint(1, 3)
    before: set[str] = set()
    made: list[str] = []
    for turn in range(stops + 1):
        fault = draw(usual) if turn < stops else Fault()
        ended = lab.run(case, fault)
        if fault.power and ended.killed:
            EVENTS["files lost with the power"] += lab.lose_power(rng)
        if ended.error and ended.error not in EXPECTED_ERRORS.get(fault.kind, ()):
            problems.append(f"turn {turn}: {ended.error}: {ended.message}")
        if again := before & set(ended.made):
            problems.append(f"turn {turn}: made again: {sorted(again)}")
        made += ended.made
        EVENTS["stops"] += ended.killed or ended.error is not None
        if out.exists():
            if lasting_contents(out) != reference:
                problems.append(f"turn {turn}: the destination is there and differs")
            break
        before = {Path(name).name for name in read_finished(work_folder(out))}
        EVENTS["stops with finished files"] += bool(before)
    else:
        problems.append("no output in the end")
    if not problems:
        # What a kill between the rename and the end leaves beside a whole output is empty.
        rest = [p for p in lab.place.iterdir() if p != out]
        if any((p / "output").exists() for p in rest):
            problems.append(f"left behind: {rest}")
    return [f"{case}: {problem}" for problem in problems]


EVENTS: Counter[str] = Counter()


def drawers(rng: random.Random) -> dict[str, Callable[[Ended], Fault]]:
    """How each kind of trial chooses its faults."""

    def kill(usual: Ended) -> Fault:
        if rng.random() < 0.5:
            return Fault(after=rng.uniform(0, usual.seconds))
        return Fault(KILL, rng.randint(1, usual.calls))

    def at_call(kind: int, power: bool = False) -> Callable[[Ended], Fault]:
        return lambda usual: Fault(kind, rng.randint(1, usual.calls), power=power)

    return {
        "kills": kill,
        "power": at_call(KILL, power=True),
        "full": at_call(FULL),
        "eio": at_call(EIO),
        "short": at_call(SHORT),
    }


def preload() -> ctypes.CDLL:
    """The library, in this process from its start: builds it and starts again if need be."""
    known = os.environ.get("TORCH2MLX_FAULTS")
    if not known:
        target = Path(tempfile.mkdtemp(prefix="faults-")) / "faults.so"
        build = ["cc", "-O1", "-shared", "-fPIC", "-o", target, HERE / "faults.c", "-ldl"]
        subprocess.run([*build, "-lpthread"], check=True)
        os.environ |= {"TORCH2MLX_FAULTS": str(target), "LD_PRELOAD": str(target)}
        os.execv(sys.executable, [sys.executable, *sys.argv])
    return ctypes.CDLL(known)


def import_everything() -> None:
    """What a conversion imports, so that no fork has to."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    import transformers

    import torch2mlx.api
    import torch2mlx.conversion.executor
    import torch2mlx.packaging.card
    import torch2mlx.packaging.staging
    import torch2mlx.packaging.tokenizer  # noqa: F401

    for name in ("llama", "mixtral"):
        transformers.models.auto.CONFIG_MAPPING[name]()
    transformers.PreTrainedTokenizerFast  # noqa: B018
    transformers.AutoTokenizer  # noqa: B018
    transformers.utils.logging.set_verbosity_error()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("kills", "power", "full", "eio", "short"):
        parser.add_argument(f"--{name}", type=int, default=10, help="trials (default: 10)")
    parser.add_argument(
        "--cases", default="copy,4-bit,experts", help=f"comma-separated, of {', '.join(CASES)}"
    )
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--json", type=Path, help="write the counts there")
    arguments = parser.parse_args()
    cases = arguments.cases.split(",")
    if unknown := set(cases) - set(CASES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    library = preload()
    library.fault_calls.restype = ctypes.c_long
    library.fault_arm.argtypes = [
        ctypes.c_int, ctypes.c_long, ctypes.c_ulong, ctypes.c_char_p, ctypes.c_char_p,
    ]  # fmt: skip
    import_everything()
    results: dict[str, Any] = {}
    failed = []
    with tempfile.TemporaryDirectory(prefix="reliability-") as root:
        lab = Lab(Path(root).resolve(), library, cases)
        lab.prepare()
        rng = random.Random(arguments.seed)
        for name, draw in drawers(rng).items():
            EVENTS.clear()
            start, wrong = time.monotonic(), []
            trials = getattr(arguments, name)
            for number in range(trials):
                case = cases[(number + arguments.seed) % len(cases)]
                wrong += trial(lab, case, draw, rng)
            results[name] = {"trials": trials, "wrong": len(wrong), **EVENTS}
            print(
                f"{name}: {trials} outputs, "
                + ", ".join(f"{count} {what}" for what, count in sorted(EVENTS.items()))
                + f"; {len(wrong)} problems ({time.monotonic() - start:.0f} s)",
                flush=True,
            )
            for problem in wrong:
                print(f"  {problem}")
            failed += wrong
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"seed": arguments.seed, "results": results}, indent=1)
        )
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
