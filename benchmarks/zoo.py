"""Every model type of transformers as a tiny random instance: which run in MLX, and how.

    python benchmarks/zoo.py                       all types; goes on where it stopped
    python benchmarks/zoo.py --only llama,vit      these types once more
    python benchmarks/zoo.py --forward             PyTorch alone: which build and run
    python benchmarks/zoo.py --render              docs/coverage.md from what is recorded

A type runs in its main task, from a config cut by rules (`tiny/configs.py`), in a process of its
own, forked from one that has imported all libraries.  A language model is converted as a
checkpoint; whatever no port fits, and all else, as a module.  The result is compared with PyTorch
on fresh inputs in float32, and greedy tokens with transformers' `generate`.

Results are lines of JSON, one a type, appended as they come; the last of a type counts.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

from tiny.catalogue import Entry, catalogue  # noqa: E402
from tiny.report import render  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
Result = dict[str, Any]


def main() -> int:
    """Run what is missing, record it, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="model types, separated by commas; measured again")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=90.0, help="seconds for one type")
    parser.add_argument("--budget", type=float, help="start nothing after this many seconds")
    parser.add_argument("--forward", action="store_true", help="stop after PyTorch's forward")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    parser.add_argument("--lines", type=Path, default=ROOT / "benchmarks/results/zoo.jsonl")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/zoo.json")
    parser.add_argument("--markdown", type=Path, default=ROOT / "docs/coverage.md")
    args = parser.parse_args()
    only = set(args.only.split(",")) if args.only else None
    if not args.render:
        args.lines.parent.mkdir(parents=True, exist_ok=True)
        done = set() if args.only else {r["type"] for r in read(args.lines)}
        entries = [
            e
            for e in catalogue()
            if e.model_type not in done and (only is None or e.model_type in only)
        ]
        entries.sort(key=lambda e: e.classes[0][0] == "base")  # towers of other models last
        run(entries, args.lines, args.jobs, args.limit, args.budget, args.forward)
    results = read(args.lines)
    if args.only or args.forward:
        print(json.dumps([r for r in results if not only or r["type"] in only], indent=1))
    else:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
        args.markdown.write_text(render(results, _versions(args.lines)))
    return int(any(r.get("outcome") == "wrong" for r in results))


def read(lines: Path) -> list[Result]:
    """The last record of every type."""
    found: dict[str, Result] = {}
    if lines.exists():
        for line in lines.read_text().splitlines():
            record = json.loads(line)
            found[record["type"]] = record
    return [found[name] for name in sorted(found)]


def _versions(lines: Path) -> dict[str, str]:
    """Of the libraries that the records were made with; beside them, as JSON."""
    file = lines.with_suffix(".versions.json")
    if not file.exists():
        names = ("torch", "transformers", "mlx", "mlx-lm")
        file.write_text(json.dumps({name: version(name) for name in names}))
    return dict(json.loads(file.read_text()))


def run(
    entries: Sequence[Entry],
    lines: Path,
    jobs: int,
    limit: float,
    budget: float | None,
    forward_only: bool,
) -> None:
    """Fork one process a type, `jobs` at a time; append each result when it is there."""
    _import_everything()
    context = multiprocessing.get_context("fork")
    begun = time.monotonic()
    waiting, running = list(reversed(entries)), dict[Connection, _Running]()
    with lines.open("a", encoding="utf-8") as file:
        while waiting or running:
            late = budget is not None and time.monotonic() - begun > budget
            while waiting and len(running) < jobs and not late:
                entry = waiting.pop()
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(entry, theirs, forward_only))
                process.start()
                theirs.close()
                running[ours] = _Running(process, entry)
            if late and not running:
                return
            for pipe in wait(list(running), timeout=0.5):
                assert isinstance(pipe, Connection)
                running[pipe].receive(pipe)
            for pipe, one in list(running.items()):
                if one.closed or time.monotonic() - one.begun > limit:
                    del running[pipe]
                    record = one.finish(limit)
                    file.write(json.dumps(record) + "\n")
                    file.flush()
                    print(_line(record), file=sys.stderr, flush=True)


class _Running:
    """A child at work on one type, and what it has told so far."""

    def __init__(self, process: Any, entry: Entry) -> None:
        self.process, self.begun, self.closed = process, time.monotonic(), False
        self.record: Result = {"type": entry.model_type, "classes": entry.classes}

    def receive(self, pipe: Connection) -> None:
        try:
            key, value = pipe.recv()
            self.record[key] = value
        except EOFError:
            self.closed = True

    def finish(self, limit: float) -> Result:
        """The record, with an outcome whatever became of the child."""
        record, stage = self.record, self.record.get("stage", "start")
        if not self.closed:
            os.kill(self.process.pid, signal.SIGKILL)
            reason = f"not finished after {limit:.0f} s ({stage})"
            record.setdefault("failure", {"stage": "time", "reason": reason})
        self.process.join()
        code = self.process.exitcode
        if self.closed and code:
            reason = record.pop("crash", f"the process ended with status {code}")
            record.setdefault("failure", {"stage": stage, "reason": reason})
        record["seconds"] = round(time.monotonic() - self.begun, 1)
        record["outcome"] = _outcome(record)
        return record


def _outcome(record: Result) -> str:
    """`not run`: no instance runs in PyTorch; `wrong`: converted, but not equal."""
    if not record.get("forward"):
        return "not run"
    if "error" in record:
        return "right" if record["error"] <= 1e-4 else "wrong"
    return "failed" if "failure" in record else "forward"


def _child(entry: Entry, pipe: Connection, forward_only: bool) -> None:
    import traceback

    from tiny.trial import run_trial

    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)
    try:
        run_trial(entry, lambda key, value: pipe.send((key, value)), forward_only)
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        text = f"{type(error).__name__}: {str(error)[:500]} ({where})"
        pipe.send(("crash", text))
        pipe.close()
        os._exit(1)
    pipe.close()
    os._exit(0)


def _import_everything() -> None:
    """Once, in the parent; no array is made, because MLX's threads do not survive a fork."""
    import importlib
    import pkgutil
    import warnings

    import torch
    import torch._dynamo
    import torch._inductor.decomposition
    import torch.export
    import transformers
    import transformers.modeling_utils
    from transformers.utils import logging

    import torch2mlx

    for name in ("mlx.core", "mlx.nn", "mlx_lm.utils", "mlx_lm.models.cache", "tiny.trial"):
        importlib.import_module(name)
    for found in pkgutil.walk_packages(torch2mlx.__path__, "torch2mlx."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    for name in ("masking_utils", "cache_utils", "generation", "modeling_rope_utils"):
        importlib.import_module(f"transformers.{name}")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    assert transformers.__version__


def _line(record: Result) -> str:
    detail = record.get("route") or record.get("failure", {}).get("reason", "")
    error = f" {record['error']:.1e}" if "error" in record else ""
    tokens = {True: " tokens equal", False: " TOKENS DIFFER"}.get(record.get("tokens_equal"), "")
    text = " ".join(f"{record.get('class', '–')} {detail}".split())[:160]
    return f"{record['type']}: {record['outcome']}{error}{tokens} {record['seconds']} s: {text}"


if __name__ == "__main__":
    sys.exit(main())
