"""What quantization costs a real model, beside mlx-lm's methods: a curve over bits per weight.

    python benchmarks/quality.py MODEL --out RESULTS --test TEST.txt --test UNSEEN.txt \
        --calibration TEXT.txt --calibration MORE.txt --jobs 8 --gpus 2
    python benchmarks/quality.py MODEL --out RESULTS --test TEST.txt --methods "torch2mlx 4-bit"

MODEL is a Hugging Face folder whose tensors have the same names in MLX (Llama, Qwen, Mistral,
Qwen3-MoE).  Every method writes an MLX folder in a process of its own; another process measures
it (`quality_measure.py`): bits per weight on the files, perplexity, KL and top-1 on windows of
512 tokens, ± the standard error between windows, and how many of 64 greedy texts end in a loop.
All are given equal parts of each --calibration text.  `--jobs` processes run at a time, half of
them torch2mlx's where both sides have work, dealt out to `--gpus` devices.

RESULTS/records.json holds what is known, renewed after every method; RESULTS/quality.md and
quality.svg hold the tables and the plot.  A method that is in records.json is not run again; one
that failed is.  `--methods` takes a regular expression; `--list` names them.

mlx-lm's awq, gptq, dwq and dynamic_quant train or search in MLX, which takes hours on a CPU: run
them on a machine with a GPU that MLX supports.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quality_report import write_report
from quantizers import OURS, PEER, TARGETS, Method, Settings, methods

_HERE = Path(__file__).resolve().parent
# MLX for CUDA cannot be imported where no device is seen, so only PyTorch is told that none is.
_ON_CPU = (
    "import sys, torch; torch.cuda.is_available = lambda: False; sys.argv[0] = 'torch2mlx'; "
    "from torch2mlx.cli import run; run()"
)


def main() -> int:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--test", type=Path, action="append", required=True)
    parser.add_argument(
        "--calibration", type=Path, action="append", default=[],
        help="several times: equal parts; default: torch2mlx's own, and no peers",
    )  # fmt: skip
    parser.add_argument("--bits", default="2,3,4,5")
    parser.add_argument("--targets", default=",".join(f"{t:g}" for t in TARGETS))
    parser.add_argument("--methods", default="", help="regular expression; default: all")
    parser.add_argument("--list", action="store_true", help="only name the methods")
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=0, help="deal the jobs out to so many")
    parser.add_argument(
        "--on-cpu", default="^$", help="methods of torch2mlx to run without the GPU"
    )
    parser.add_argument("--limit", type=float, default=1800, help="seconds for one method")
    parser.add_argument("--deadline", type=float, default=1e9, help="seconds for all of them")
    args = parser.parse_args()
    args.model, args.out = args.model.resolve(), args.out.resolve()
    args.test = [path.resolve() for path in args.test]
    texts = tuple(path.resolve() for path in args.calibration)
    settings = Settings(args.model, texts, args.tokens, args.samples, args.length, args.group_size)
    numbers = [int(b) for b in args.bits.split(",") if b]
    found = methods(settings, numbers, [float(t) for t in args.targets.split(",") if t])
    wanted = [method for method in found if re.search(args.methods, method.name)]
    if args.list:
        print("\n".join(method.name for method in wanted))
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    bench = _Bench(args, wanted)
    bench.run()
    print((args.out / "quality.md").read_text(encoding="utf-8"))
    return 0


class _Bench:
    def __init__(self, args: argparse.Namespace, wanted: Sequence[Method]) -> None:
        self.args = args
        self.folders = args.out / "models"
        self.folders.mkdir(exist_ok=True)
        self.file = args.out / "records.json"
        self.records: dict[str, dict[str, Any]] = {}
        if self.file.exists():
            self.records = json.loads(self.file.read_text(encoding="utf-8"))
        self.lock = threading.Lock()
        self.own = threading.local()  # "device": the GPU of a thread's processes
        self.end = time.monotonic() + args.deadline
        self.waiting = [m for m in wanted if "texts" not in self.records.get(m.name, {})]
        self.under_way: set[str] = set()

    def run(self) -> None:
        """Everything that is missing, in `jobs` threads."""
        threads = [threading.Thread(target=self._reference)]
        for i in range(self.args.jobs):
            owners = (OURS, PEER) if i % 2 == 0 else (PEER, OURS)
            device = str(i // 2 % self.args.gpus) if self.args.gpus else None
            threads.append(threading.Thread(target=self._work, args=(owners, device)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        write_report(self.records, self.args.out)

    def _reference(self) -> None:
        if self.args.prompts and "loops" not in self.records.get("reference", {}):
            command = self._measuring(self.args.model)
            self._note("reference", self._read(command, {"owner": "PyTorch", "family": ""}))

    def _work(self, owners: Sequence[str], device: str | None) -> None:
        self.own.device = device
        while time.monotonic() < self.end:
            method = self._next(owners)
            if method is None:
                if not self._may_come():
                    return
                time.sleep(1)
                continue
            try:
                self._note(method.name, self._one(method))
            finally:
                with self.lock:
                    self.under_way.discard(method.name)

    def _next(self, owners: Sequence[str]) -> Method | None:
        """A method whose folders are there, of the first owner that has any."""
        with self.lock:
            for owner in owners:
                for method in self.waiting:
                    if method.owner == owner and self._ready(method):
                        self.waiting.remove(method)
                        self.under_way.add(method.name)
                        return method
        return None

    def _ready(self, method: Method) -> bool:
        if method.embedding is None:
            return True
        needed = (method.arguments[0], method.embedding)
        return all("texts" in self.records.get(name, {}) for name in needed)

    def _may_come(self) -> bool:
        """Whether a method that waits for others may still become ready."""
        with self.lock:
            return any(m.embedding is None or self.under_way for m in self.waiting)

    def _one(self, method: Method) -> dict[str, Any]:
        record: dict[str, Any] = {"owner": method.owner, "family": method.family}
        if method.embedding is not None:
            command = self._measuring(self._folder(method.arguments[0]))
            return self._read(
                [*command, "--embedding", str(self._folder(method.embedding))], record
            )
        folder = self._folder(method.name)
        if not (folder / "config.json").exists():
            command = [sys.executable, *method.arguments, str(folder)]
            if method.owner == OURS and re.search(self.args.on_cpu, method.name):
                command[1:3] = ["-c", _ON_CPU]
            # dynamic_quant leaves a file where it runs.
            place = self.folders if method.owner == PEER else None
            done = self._child(command, record, True, place)
            if done is None:
                return record
        command = self._measuring(folder)
        return self._read([*command, "--mlx"] if method.owner == OURS else command, record)

    def _folder(self, name: str) -> Path:
        return self.folders / re.sub(r"[^\w.-]+", "-", name)

    def _measuring(self, folder: Path) -> list[str]:
        args = self.args
        sizes = {"windows": args.windows, "length": args.length, "prompts": args.prompts}
        return [
            sys.executable, str(_HERE / "quality_measure.py"), str(args.model), str(folder),
            *(word for path in args.test for word in ("--test", str(path))),
            *(word for name, value in sizes.items() for word in (f"--{name}", str(value))),
        ]  # fmt: skip

    def _read(self, command: Sequence[str], record: dict[str, Any]) -> dict[str, Any]:
        text = self._child(command, record)
        return record if text is None else {**record, **json.loads(text.splitlines()[-1])}

    def _child(
        self,
        command: Sequence[str],
        record: dict[str, Any],
        timed: bool = False,
        place: Path | None = None,
    ) -> str | None:
        """Stdout of a process, its costs noted if `timed`; None, with the reason, if it failed."""
        limit = min(self.args.limit, self.end - time.monotonic())
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        device = getattr(self.own, "device", None)
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device
        begin = time.perf_counter()
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
            child = subprocess.Popen(
                command, stdout=out, stderr=log, env=environment, cwd=place,
                start_new_session=True,
            )  # fmt: skip
            late = threading.Timer(max(1.0, limit), _kill, [child.pid])
            late.start()
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            late.cancel()
            out.seek(0)
            log.seek(0)
            text = out.read()
            lines = [line for line in log.read().splitlines() if line.strip()]
        if timed:
            record["seconds"] = time.perf_counter() - begin
            record["cpu_seconds"] = usage.ru_utime + usage.ru_stime
            unit = 1 if sys.platform == "darwin" else 1024
            record["peak_rss"] = usage.ru_maxrss * unit
        if child.returncode == 0:
            return text
        killed = child.returncode == -signal.SIGKILL
        reason = f"stopped after {limit:.0f} s" if killed else " | ".join(lines[-3:])[-600:]
        record["failed"] = reason or f"exit status {child.returncode}"
        return None

    def _note(self, name: str, record: Mapping[str, Any]) -> None:
        with self.lock:
            self.records[name] = dict(record)
            partial = self.file.with_suffix(".partial")
            partial.write_text(json.dumps(self.records, indent=1) + "\n", encoding="utf-8")
            partial.replace(self.file)
            kl = next(iter(record.get("texts", {}).values()), {}).get("kl")
            result = record.get("failed") or (f"KL {kl:.4f}" if kl is not None else "done")
            print(f"{name}: {result} ({record.get('seconds', 0):.0f} s)", file=sys.stderr)


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    raise SystemExit(main())
