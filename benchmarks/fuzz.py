"""Damaged and hostile checkpoints against torch2mlx: what may come out is an error of its own.

    python benchmarks/fuzz.py --cases 20000

Each case runs in a forked process with all libraries loaded: `intake.py` opens, inspects, plans and
reads it; every twentieth is also converted as a whole, of formats that are compiled every two
hundredth.  A finding is an exception of another kind, a crash, more than 10 seconds of processor
time (60 where it is compiled) or two minutes in all (machines are busy), more than 1 GB of memory
above the process's footprint, a file outside of the output, or a payload that ran.
"""

from __future__ import annotations

import argparse
import importlib
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from intake import intake, try_checkpoint
from mutations import FORMATS, format_of, make_seeds, mutate_case

__all__ = ["Outcome", "run_case"]

SECONDS = 10  # of processor time
COMPILING = 60  # the same where code is generated
WALL = 120  # seconds after which a silent process is ended
MEMORY = 1 << 30
CONVERTED = 20  # every so many cases the whole conversion runs
COMPILED = {"synthesizer": 200, "whisper": 200}  # the same where it takes seconds of compiling


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
    every = COMPILED.get(name, CONVERTED)
    whole = number % every == every - 1
    signal.setitimer(signal.ITIMER_PROF, COMPILING if whole and name in COMPILED else SECONDS)
    try:
        result, detail = intake(name, source, output if whole else None), kind
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


# What single cases would import otherwise, each time anew.
_LIBRARIES = (
    *("gguf", "mlx_lm.utils", "sentencepiece", "tiktoken", "tokenizers", "torch"),
    *("torch2mlx.diagnosis.examination", "torch2mlx.evidence.recheck", "torch2mlx.tuning"),
    *("torch2mlx.evidence.upload", "torch2mlx.reporting.report", "torch2mlx.selection"),
    *("torch2mlx.packaging.card", "torch2mlx.packaging.preflight", "torch2mlx.packaging.staging"),
    *("torch2mlx.packaging.stopping", "torch2mlx.packaging.tokenizer", "torch2mlx.routing"),
    *("torch2mlx.sources.adapters", "torch2mlx.sources.original", "torch2mlx.sources.packed"),
    *("torch2mlx.compiler.encoder_decoder.methods", "torch2mlx.compiler.speech.synthesizer"),
    *("torch2mlx.audio.conversion", "torch2mlx.compiler.publish"),
    *("transformers.models.auto.tokenization_auto", "transformers.models.llama.modeling_llama"),
    *("transformers.models.fastspeech2_conformer.modeling_fastspeech2_conformer",),
    *("transformers.models.vits.modeling_vits", "transformers.models.whisper.modeling_whisper"),
)


def _load_libraries(seeds: Path) -> None:
    """Import all that cases need, so that forked processes share it."""
    for kind in ("safetensors", "torch", "gguf", "mlx"):
        found = try_checkpoint(seeds / kind)
        if found != "read":
            raise SystemExit(f"the undamaged {kind} checkpoint is not read: {found}")
    for name in _LIBRARIES:
        importlib.import_module(name)


def _batch(numbers: list[int], seed: int, seeds: Path, room: Path, pipe: Any) -> None:
    os.setpgrp()
    sys.stdout = sys.stderr = io.StringIO()  # what libraries say of damaged files
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in numbers:
        pipe.send(("begins", number))
        pipe.send(("ended", run_case(number, seed, seeds, room)))
    pipe.close()
    os._exit(0)


def run(
    numbers_of: Sequence[int], seed: int, seeds: Path, room: Path, batch: int, seconds: float
) -> list[Outcome]:
    """Run cases one after the other, in batches of one process each, until the time is up."""
    outcomes: list[Outcome] = []
    context = multiprocessing.get_context("fork")
    done = 0
    shown = start = time.monotonic()
    while done < len(numbers_of) and time.monotonic() - start < seconds:
        numbers = list(numbers_of[done : done + batch])
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
                    current, done = None, done + 1
                    if value.finding:  # the process may be in any state
                        print(ascii(value), file=sys.stderr, flush=True)
                        break
        except EOFError:
            pass
        process.kill()
        process.join()
        if current is not None:
            result = f"!exit {process.exitcode}"
            outcomes.append(
                Outcome(current, format_of(current), result, "the process hung or crashed", SECONDS)
            )
            done += 1
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
    parser.add_argument("--formats", default="", help="only these, separated by commas")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start nothing later")
    parser.add_argument("--json", type=Path, help="write counts and findings to this file")
    options = parser.parse_args()
    only = set(filter(None, options.formats.split(",")))
    if only - set(FORMATS):
        parser.error(f"--formats: of {', '.join(FORMATS)}")
    numbers = range(options.first, options.first + options.cases)
    chosen = [n for n in numbers if not only or format_of(n) in only]
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        seeds, room = Path(temporary) / "seeds", Path(temporary) / "room"
        room.mkdir()
        # MLX's threads do not survive a fork, so the parent must never evaluate an array.
        maker = multiprocessing.get_context("fork").Process(target=make_seeds, args=(seeds,))
        maker.start()
        maker.join()
        _load_libraries(seeds)
        before = _fingerprint(seeds)
        outcomes = run(chosen, options.seed, seeds, room, options.batch, options.seconds)
        if _fingerprint(seeds) != before:
            raise SystemExit("the undamaged inputs were changed")
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
        summary = {
            "seed": options.seed,
            "cases": len(outcomes),
            "slowest": slowest,
            "formats": table,
            "findings": [asdict(outcome) for outcome in findings],
        }
        options.json.write_text(json.dumps(summary, indent=1))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
