"""Run engines one after the other, each in a process of its own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch2mlx.benchmarking.machine import conditions
from torch2mlx.benchmarking.rows import Benchmark, Row
from torch2mlx.errors import OptionError, SourceError
from torch2mlx.progress import Progress, Silent

__all__ = ["PROMPTS", "BenchmarkOptions", "parse_sizes", "read_prompts", "run_benchmark"]

PROMPTS = (
    "Why is the sky blue?",
    "The harbour was quiet when the last boat came in. Two men tied it to the wall, counted the "
    "boxes on the deck, and carried them up the stairs to the market, where the lamps were already "
    "lit. By the time the rain began, the fish had been sold and the street was empty. Tell what "
    "happened on the next morning, when the boat did not leave.",
)
"""A short question and a paragraph; written for this file."""

_RANDOM_TOKENS = 64  # of a prompt for a model without a tokenizer


@dataclass(frozen=True)
class BenchmarkOptions:
    """How to measure.

    Attributes:
        torch: the original, for PyTorch's rows: a checkpoint's folder, GGUF file or hub id;
            "package.module:factory" or a .pt2 file for modules; None: MLX alone.
        prompts: texts; every engine gets the same.
        max_tokens: to generate for each prompt; nothing stops earlier.
        repeats: measured passes, after one that is not.
        compile: rows of torch.compile beside those of eager PyTorch.
        sizes: extents of a module's open axes, by name; 8 for others.
        trust_remote_code: allow code of the folders and of the checkpoint to run.
    """

    torch: str | None = None
    prompts: Sequence[str] = PROMPTS
    max_tokens: int = 64
    repeats: int = 5
    compile: bool = False
    sizes: Mapping[str, int] = field(default_factory=dict)
    trust_remote_code: bool = False

    def check(self) -> None:
        """Raise OptionError for what cannot be measured."""
        if self.repeats < 1 or self.max_tokens < 1:
            raise OptionError("--repeats and --max-tokens: at least 1")
        if not any(prompt.strip() for prompt in self.prompts):
            raise OptionError("no prompt: give at least one line of text")
        if self.compile and self.torch is None:
            raise OptionError("--compile measures torch.compile; name the original with --torch")


def read_prompts(file: str | Path) -> tuple[str, ...]:
    """The lines of a file that are not empty.

    Raises:
        SourceError: it cannot be read as text.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"--prompts {file}: cannot be read: {error}") from error
    return tuple(line for line in lines if line.strip())


def parse_sizes(texts: Sequence[str]) -> dict[str, int]:
    """{"batch": 4} of ["batch=4"].

    Raises:
        OptionError: another form.
    """
    sizes = {}
    for text in texts:
        name, _, number = text.partition("=")
        if not name.isidentifier() or not number.isdecimal():
            raise OptionError(f"--size {text}: write the axis and its extent, as in batch=4")
        sizes[name] = int(number)
    return sizes


def run_benchmark(
    folders: Sequence[str | Path], options: BenchmarkOptions, progress: Progress | None = None
) -> Benchmark:
    """Measure folders in MLX, and their original in PyTorch, in one run.

    Args:
        folders: MLX folders of language models, or of compiled modules; not both.
        options: see there.
        progress: listener.

    Raises:
        OptionError: nothing that can be compared.
        SourceError: a folder is no MLX model, or nothing at all could be measured.
    """
    options.check()
    listener = progress or Silent()
    requests = list(_requests([Path(folder) for folder in folders], options))
    before = conditions()
    rows = []
    for request in requests:
        name = f"{request['engine']} on {request['device']}: {request['model']}"
        with listener.stage(f"Measuring {name}"):
            rows.append(_run(request))
    after = conditions()
    if all(row.error for row in rows):
        raise SourceError("nothing could be measured: " + "; ".join(str(row.error) for row in rows))
    return Benchmark(
        rows=tuple(rows),
        conditions={
            "processor": before["processor"],
            "cores": before["cores"],
            "load_before": before["load"],
            "load_after": after["load"],
            "notes": list(dict.fromkeys(before["notes"] + _heat(after["notes"]))),
        },
        prompts=len(options.prompts) if requests[0]["kind"] == "language" else 0,
        max_tokens=options.max_tokens,
        repeats=options.repeats,
    )


def _heat(notes: Sequence[str]) -> list[str]:
    """Notes at the end of a run; its own load is no disturbance."""
    return [note for note in notes if not note.startswith("load average")]


def _requests(folders: Sequence[Path], options: BenchmarkOptions) -> Iterator[dict[str, Any]]:
    """One request for each engine, device and model, PyTorch's first."""
    from torch2mlx.sources.local_files import read_json_object

    if not folders:
        raise OptionError("no folder: torch2mlx bench FOLDER...")
    configs = []
    for folder in folders:
        if not (folder / "config.json").is_file():
            raise SourceError(f"{folder}: no MLX model here (config.json is missing)")
        configs.append(read_json_object(folder / "config.json"))
    modules = ["model_class" in config for config in configs]
    if any(modules) and not all(modules):
        raise OptionError("language models and compiled modules are measured in runs of their own")
    kind = "module" if modules[0] else "language"
    if kind == "module" and not options.trust_remote_code:
        raise OptionError(
            f"{folders[0]}: to be measured, its model.py must run; read it, and give "
            "--trust-remote-code if you trust it"
        )
    common = {
        "kind": kind,
        "prompts": list(options.prompts),
        "max_tokens": options.max_tokens,
        "repeats": options.repeats,
        "sizes": dict(options.sizes),
        "trust_remote_code": options.trust_remote_code,
        "tokenizer": all(_has_tokenizer(folder) for folder in folders),
        "ids": _random_prompts(configs, len(options.prompts)),
        "config": configs[0] if kind == "module" else None,
    }
    if options.torch is not None:
        engines = ["torch eager", *(["torch compile"] if options.compile else [])]
        for device in _torch_devices():
            for engine in engines:
                yield {**common, "engine": engine, "device": device, "model": options.torch}
    for folder, config in zip(folders, configs, strict=True):
        if kind == "module":
            common["config"] = config
        yield {**common, "engine": "mlx", "device": _mlx_device(), "model": str(folder)}


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json"))


def _random_prompts(configs: Sequence[Mapping[str, Any]], count: int) -> list[list[int]]:
    """Ids for models without a tokenizer, inside the smallest vocabulary."""
    sizes = [config.get("vocab_size") for config in configs]
    vocabulary = min((size for size in sizes if isinstance(size, int) and size > 0), default=2)
    generator = random.Random(0)
    return [[generator.randrange(vocabulary) for _ in range(_RANDOM_TOKENS)] for _ in range(count)]


def _torch_devices() -> list[str]:
    """Devices that this system may have, told without importing PyTorch."""
    if sys.platform == "darwin":
        return ["cpu", "mps"]
    return ["cpu", *(["cuda"] if Path("/dev/nvidiactl").exists() else [])]


def _mlx_device() -> str:
    import mlx.core as mx

    return "cpu" if mx.default_device() == mx.cpu else "gpu"


def _run(request: Mapping[str, Any]) -> Row:
    with tempfile.TemporaryDirectory(prefix="torch2mlx-bench-") as scratch:
        result = Path(scratch) / "row.json"
        command = [sys.executable, "-m", "torch2mlx.benchmarking.worker", str(result)]
        done = subprocess.run(
            command,
            input=json.dumps(request),
            capture_output=True,
            text=True,
            env=os.environ
            | {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        )
        if result.exists():
            return Row.from_dict(json.loads(result.read_text(encoding="utf-8")))
    last = (done.stderr.strip().splitlines() or ["no message"])[-1][:300]
    ended = f"by signal {-done.returncode}" if done.returncode < 0 else f"with {done.returncode}"
    return Row(
        engine=request["engine"],
        device=request["device"],
        model=request["model"],
        kind=request["kind"],
        error=f"the process ended {ended} (out of memory is signal 9): {last}",
    )
