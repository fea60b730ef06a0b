"""Conversion: torch2mlx, mlx-lm and a plain file copy, side by side in one run.

    python benchmarks/convert.py --sizes 1
    python benchmarks/convert.py --sizes 4,8,mixtral --json benchmarks/results/convert.json

For each checkpoint, to bfloat16 and to 4 bits, every contender converts it `--repeats` times in
processes of their own, in an order that rotates.  The source is read once before each run (page
cache), what was written is flushed after it and deleted, so a run does not pay for the one before.

    copy                reads and writes the weight files, 8 MB at a time
    mlx-lm              python -m mlx_lm convert
    torch2mlx           python -m torch2mlx convert --no-verify, with mlx-lm's choice of bits
    torch2mlx + gate    the same with its comparison against PyTorch, as it runs by default

Wall is from start to exit; "on disk" adds the seconds until the output has reached the disk, which
only torch2mlx waits for by itself.  The import footprint is that of a process which imports what
the program imports, and nothing else; it is taken off in the columns "− imports".
The tensors that torch2mlx writes are compared byte by byte with mlx-lm's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fabricate import SHAPES
from processes import Usage, measure, middle, warm

HERE = Path(__file__).resolve().parent
SIZES = {"1": "llama-1", "4": "llama-4", "8": "llama-8", "mixtral": "mixtral-4"}
MODES = {"bf16": (), "4-bit": ("-q", "--q-bits", "4", "--q-group-size", "64")}
# torch2mlx keeps routers at 8 bits unless told otherwise; for the comparison, mlx-lm's choice.
LIKE_MLX_LM = ("--router", "same")
COPY = """
import os, sys
buffer = memoryview(bytearray(2**23))
os.makedirs(sys.argv[2])
for name in sorted(os.listdir(sys.argv[1])):
    with open(os.path.join(sys.argv[1], name), "rb", 0) as source, \\
         open(os.path.join(sys.argv[2], name), "wb", 0) as target:
        while count := source.readinto(buffer):
            target.write(buffer[:count])
"""


@dataclass(frozen=True)
class Contender:
    """A program under test; `module` and `flags` make its command, None means the file copy."""

    name: str
    module: str | None = None
    flags: tuple[str, ...] = ()
    quantized_flags: tuple[str, ...] = ()

    def arguments(self, source: Path, output: Path, mode: str) -> list[str]:
        """What follows `python -m`."""
        return [
            self.module or "",
            "convert",
            "--hf-path",
            str(source),
            "--mlx-path",
            str(output),
            *MODES[mode],
            *self.flags,
            *(self.quantized_flags if MODES[mode] else ()),
        ]

    def command(self, source: Path, output: Path, mode: str) -> list[str]:
        """The whole command line."""
        if self.module is None:
            # -S -E: a copy needs no site-packages.
            return [sys.executable, "-S", "-E", "-c", COPY, str(source), str(output)]
        return [sys.executable, "-m", *self.arguments(source, output, mode)]


COPYING = Contender("copy")
MLX_LM = Contender("mlx-lm", "mlx_lm")
OURS = Contender("torch2mlx", "torch2mlx", ("--no-verify",), LIKE_MLX_LM)
GATED = Contender("torch2mlx + gate", "torch2mlx", (), LIKE_MLX_LM)


@dataclass(frozen=True)
class Row:
    """One contender's median over the repeats, with its import footprint."""

    checkpoint: str
    mode: str
    contender: str
    usage: Usage
    imports: Usage
    runs: tuple[Usage, ...]
    written: int
    identical: str = ""


class Bench:
    """Runs contenders in a scratch folder that is emptied as it goes."""

    def __init__(self, data: Path, scratch: Path, repeats: int, console: Console) -> None:
        self.data, self.scratch, self.repeats, self.console = data, scratch, repeats, console
        self.output = scratch / "output"
        self.log = scratch / "log"

    def fabricate(self, name: str) -> Path:
        """The checkpoint's folder; made in a process of its own, which keeps this one small."""
        folder = self.data / name
        if not folder.exists():
            self.console.print(f"writing {folder} ({SHAPES[name].nbytes / 1e9:.2f} GB)")
            measure([sys.executable, str(HERE / "fabricate.py"), name, str(folder)], self.log)
        return folder

    def imports(self, contender: Contender, checkpoint: str) -> Usage:
        """What importing costs: the modules of a tiny conversion, imported and nothing else."""
        if contender.module is None:
            return Usage(0.0, 0.0, 0, 0.0)
        family = checkpoint.split("-")[0]
        names = self.scratch / f"modules {contender.name} {family}.json"
        contents = [sys.executable, str(HERE / "contents.py")]
        if not names.exists():
            tiny = self.fabricate(f"{family}-tiny")
            arguments = contender.arguments(tiny, self.output, "4-bit")
            measure([*contents, "modules", str(names), "-m", *arguments], self.log)
            self.clear()
        return measure([*contents, "import", str(names)], self.log)

    def clear(self) -> None:
        """Remove the output of the run before."""
        shutil.rmtree(self.output, ignore_errors=True)

    def digests(self) -> dict[str, str]:
        """The fingerprints of the output's tensors, computed in a process of its own."""
        out = self.scratch / "tensors.json"
        command = [sys.executable, str(HERE / "contents.py"), "tensors", str(self.output), str(out)]
        measure(command, self.log)
        digests: dict[str, str] = json.loads(out.read_text())
        return digests

    def compare(self, checkpoint: str, mode: str, contenders: Sequence[Contender]) -> list[Row]:
        """Every contender on one checkpoint and mode, `repeats` times in rotating order."""
        source = self.fabricate(checkpoint)
        runs: dict[str, list[Usage]] = {c.name: [] for c in contenders}
        imports: dict[str, list[Usage]] = {c.name: [] for c in contenders}
        digests: dict[str, dict[str, str]] = {}
        written: dict[str, int] = {}
        for turn in range(self.repeats):
            start = turn % len(contenders)
            for contender in (*contenders[start:], *contenders[:start]):
                # In the same turn, so that a busy machine slows both.
                imports[contender.name].append(self.imports(contender, checkpoint))
                warm(source)
                os.sync()
                usage = measure(contender.command(source, self.output, mode), self.log, self.output)
                runs[contender.name].append(usage)
                self.console.print(
                    f"[dim]{checkpoint} {mode} {contender.name}: {usage.wall:.1f} s wall, "
                    f"{usage.cpu:.1f} s CPU, {usage.rss / 1e9:.2f} GB"
                )
                if turn == 0:
                    weights = self.output.glob("*.safetensors")
                    written[contender.name] = sum(f.stat().st_size for f in weights)
                    if contender in (MLX_LM, OURS):
                        digests[contender.name] = self.digests()
                self.clear()
        return [
            Row(
                checkpoint,
                mode,
                c.name,
                middle(runs[c.name]),
                middle(imports[c.name]),
                tuple(runs[c.name]),
                written[c.name],
                difference(digests, c.name),
            )
            for c in contenders
        ]


def difference(digests: dict[str, dict[str, str]], name: str) -> str:
    """How the tensors of `name` compare with mlx-lm's, in a few words; "" if not compared."""
    if name == MLX_LM.name or not {name, MLX_LM.name} <= digests.keys():
        return ""
    mine, theirs = digests[name], digests[MLX_LM.name]
    different = sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k))
    if different:
        return f"{len(different)} of {len(theirs)} differ, first {different[0]}"
    return f"{len(theirs)} tensors, same bytes"


def show(rows: list[Row], console: Console) -> None:
    """One table for each checkpoint and mode; ratios are to mlx-lm (CPU) and the copy (wall)."""
    for checkpoint, mode in dict.fromkeys((r.checkpoint, r.mode) for r in rows):
        group = [r for r in rows if (r.checkpoint, r.mode) == (checkpoint, mode)]
        by_name = {r.contender: r for r in group}
        copy, peer = by_name[COPYING.name], by_name[MLX_LM.name]
        table = Table(
            title=f"{checkpoint} ({SHAPES[checkpoint].nbytes / 1e9:.2f} GB) to {mode}",
            title_justify="left",
        )
        table.add_column("", no_wrap=True)
        for column in (
            "wall s", "− imports", "× copy", "on disk s", "− imports", "× copy",
            "CPU s", "− imports", "× mlx-lm", "peak GB", "− imports", "written GB",
        ):  # fmt: skip
            table.add_column(column, justify="right")
        for row in group:
            u, i = row.usage, row.imports
            wall, disk = u.wall - i.wall, u.flushed - i.wall
            table.add_row(
                row.contender,
                f"{u.wall:.1f}",
                f"{wall:.1f}",
                f"{wall / copy.usage.wall:.2f}",
                f"{u.flushed:.1f}",
                f"{disk:.1f}",
                f"{disk / copy.usage.flushed:.2f}",
                f"{u.cpu:.1f}",
                f"{u.cpu - i.cpu:.1f}",
                f"{u.cpu / peer.usage.cpu:.2f}",
                f"{u.rss / 1e9:.2f}",
                f"{(u.rss - i.rss) / 1e9:.2f}",
                f"{row.written / 1e9:.2f}",
            )
        console.print(table)
        for row in group:
            if row.identical:
                console.print(f"  {row.contender} and mlx-lm: {row.identical}")


def start_up(bench: Bench) -> dict[str, Usage]:
    """The commands that a user waits for before any work is done."""
    tiny = bench.fabricate("llama-tiny")
    module = [sys.executable, "-m", "torch2mlx"]
    commands = {
        "torch2mlx --help": [*module, "--help"],
        "torch2mlx inspect": [*module, "inspect", str(tiny)],
        "mlx_lm convert --help": [sys.executable, "-m", "mlx_lm", "convert", "--help"],
    }
    return {
        name: middle([measure(command, bench.log) for _ in range(3)])
        for name, command in commands.items()
    }


def check_room(data: Path, scratch: Path, names: Sequence[str]) -> None:
    """Stop now if the disk cannot hold the checkpoints that are missing and one output."""
    missing = sum(SHAPES[n].nbytes for n in names if not (data / n).exists())
    need = missing + max(SHAPES[n].nbytes for n in names)
    for folder in (data, scratch):
        free = shutil.disk_usage(folder).free
        if free < need * 1.05:
            sys.exit(f"{folder}: {need / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")


def describe_machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    versions = {}
    for package in ("torch2mlx", "mlx-lm", "mlx", "torch", "transformers", "safetensors"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "source tree"
    return {
        "date": time.strftime("%Y-%m-%d"),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "versions": versions,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="1", help=f"comma-separated, of {', '.join(SIZES)}")
    parser.add_argument("--modes", default="bf16,4-bit", help="comma-separated, of bf16, 4-bit")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-gate", action="store_true", help="leave the gated runs out")
    parser.add_argument(
        "--data", type=Path, default=HERE / "data", help="where checkpoints are kept"
    )
    parser.add_argument("--json", type=Path, help="write all figures there")
    arguments = parser.parse_args()
    sizes, modes = arguments.sizes.split(","), arguments.modes.split(",")
    if unknown := [s for s in sizes if s not in SIZES] + [m for m in modes if m not in MODES]:
        parser.error(f"unknown: {', '.join(unknown)}")
    names = [SIZES[s] for s in sizes]
    contenders = [COPYING, MLX_LM, OURS, *([] if arguments.no_gate else [GATED])]

    console = Console(width=max(150, shutil.get_terminal_size().columns))
    arguments.data.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=arguments.data) as scratch:
        check_room(arguments.data, Path(scratch), names)
        bench = Bench(arguments.data, Path(scratch), arguments.repeats, console)
        commands = start_up(bench)
        for name in names:
            for mode in modes:
                rows += bench.compare(name, mode, contenders)
    show(rows, console)
    for name, usage in commands.items():
        console.print(f"{name}: {usage.wall:.2f} s, {usage.rss / 1e6:.0f} MB")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        report = {
            "machine": describe_machine(),
            "start_up": {name: asdict(usage) for name, usage in commands.items()},
            "rows": [asdict(row) for row in rows],
        }
        arguments.json.write_text(json.dumps(report, indent=1))
    if any("differ" in row.identical for row in rows):
        sys.exit("torch2mlx and mlx-lm wrote different tensors for the same settings")


if __name__ == "__main__":
    main()
