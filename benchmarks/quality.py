"""What quantization costs a real model, beside mlx-lm's methods.

    python benchmarks/quality.py MODEL --test TEST.txt --calibration TEXT.txt --bits 3,4
    python benchmarks/quality.py MODEL --test TEST.txt --calibration TEXT.txt --mlx-lm awq,gptq,dwq

MODEL is a Hugging Face folder whose tensors have the same names in MLX (Llama, Qwen, Mistral).
Every method writes an MLX folder.  Its weights are then dequantized by `mx.dequantize` and run in
PyTorch in float32, beside the original: windows of 512 tokens, evenly spaced over the test text.
bpw is measured on the files, scales, biases and unquantized tensors included; ± is the standard
error between windows; seconds are those of the whole command, loading included.

mlx-lm's awq, gptq and dynamic read their calibration text from the user's cache, dwq from a folder;
both are given --calibration.  They train or search in MLX, which takes hours on a CPU: run them on
a machine with a GPU that MLX supports.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

_LENGTH = 512
_PEERS = ("awq", "gptq", "dwq", "dynamic")


@dataclass(frozen=True)
class Row:
    """One method, measured."""

    method: str
    bits_per_weight: float
    perplexity: float
    kl: float
    kl_error: float
    top1: float
    seconds: float
    text: str


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--test", type=Path, action="append", required=True)
    parser.add_argument("--calibration", type=Path, help="default: torch2mlx's own")
    parser.add_argument("--bits", default="4")
    parser.add_argument("--group-size", default="64")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--distill", action="store_true")
    parser.add_argument("--mlx-lm", default="", help=f"also run {', '.join(_PEERS)}")
    parser.add_argument("--only", default="", help="methods whose name contains this")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        bench = _Bench(args, Path(scratch))
        print(_HEADER, flush=True)
        for name, command, environment in bench.commands():
            if args.only in name:
                for row in bench.measure(name, command, environment):
                    print(_line(row), flush=True)
                    rows.append(row)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


_HEADER = (
    "| method | bpw | text | perplexity | mean KL | top-1 % | s |\n|---|---|---|---|---|---|---|"
)


def _line(row: Row) -> str:
    return (
        f"| {row.method} | {row.bits_per_weight:.2f} | {row.text} | {row.perplexity:.2f} "
        f"| {row.kl:.4f} ± {row.kl_error:.4f} | {100 * row.top1:.1f} | {row.seconds:.0f} |"
    )


class _Bench:
    def __init__(self, args: argparse.Namespace, scratch: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from torch2mlx.verification.quality import RecordedLogits

        self.args = args
        self.scratch = scratch
        self._load = AutoModelForCausalLM.from_pretrained
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        reference = self._model()
        self.texts = []
        for path in args.test:
            windows = _windows(tokenizer, path.read_text(encoding="utf-8"), args.windows)
            folder = scratch / f"reference-{len(self.texts)}"
            folder.mkdir()
            self.texts.append((path.stem, windows, RecordedLogits(reference, windows, folder)))

    def _model(self) -> Any:
        import torch

        return self._load(self.args.model, dtype=torch.float32).eval()

    def commands(self) -> Iterator[tuple[str, list[str], dict[str, str]]]:
        """(name, command without its destination, environment) of each method."""
        args = self.args
        text = [] if args.calibration is None else ["--calibration-text", str(args.calibration)]
        tokens = ["--calibration-tokens", str(args.tokens)]
        home = self.scratch / "home"
        for bits in args.bits.split(","):
            size = ["--q-bits", bits, "--q-group-size", args.group_size]
            yield f"mlx-lm {bits}-bit RTN", [
                "mlx_lm", "convert", "--hf-path", str(args.model), "-q", *size, "--mlx-path",
            ], {}  # fmt: skip
            ours = ["torch2mlx", "convert", str(args.model), "-q", *size, "--quiet", "--no-verify"]
            yield f"torch2mlx {bits}-bit RTN", [*ours, "--mlx-path"], {}
            calibrate = [*ours, "--calibrate", *text, *tokens]
            yield f"torch2mlx {bits}-bit calibrated", [*calibrate, "--mlx-path"], {}
            if args.distill:
                name = f"torch2mlx {bits}-bit calibrated, distilled"
                yield name, [*calibrate, "--distill", "--mlx-path"], {}
            for peer in filter(None, args.mlx_lm.split(",")):
                if peer not in _PEERS:
                    raise SystemExit(f"--mlx-lm {peer}: choose among {', '.join(_PEERS)}")
                yield self._peer(peer, bits, home)

    def _peer(self, peer: str, bits: str, home: Path) -> tuple[str, list[str], dict[str, str]]:
        """mlx-lm's own quantizers, which are given the calibration text."""
        args = self.args
        if args.calibration is None:
            raise SystemExit("--mlx-lm needs --calibration: it has no text of its own offline")
        cache = home / ".cache" / "mlx-lm"
        cache.mkdir(parents=True, exist_ok=True)
        text = args.calibration.read_text(encoding="utf-8")
        (cache / "calibration_v5.txt").write_text(text, encoding="utf-8")
        sets = home / "dwq"
        sets.mkdir(exist_ok=True)
        lines = [json.dumps({"text": text[i : i + 3000]}) for i in range(0, len(text), 3000)]
        for name in ("train", "valid"):
            (sets / f"{name}.jsonl").write_text("\n".join(lines[:2048]), encoding="utf-8")
        module = {"dynamic": "mlx_lm.quant.dynamic_quant"}.get(peer, f"mlx_lm.quant.{peer}")
        command = [module, "--model", str(args.model)]
        if peer == "dynamic":
            command += ["--target-bpw", str(float(bits) + 0.5)]
            command += ["--low-bits", bits, "--high-bits", str(int(bits) + 1)]
        else:
            command += ["--bits", bits, "--group-size", args.group_size]
        if peer == "awq":
            command += ["--embed-bits", bits, "--embed-group-size", args.group_size]
        if peer == "dwq":
            command += ["--data-path", str(sets), "--num-samples", "1024"]
            command += ["--max-seq-length", str(_LENGTH), "--learning-rate", "2e-5"]
        return f"mlx-lm {bits}-bit {peer}", [*command, "--mlx-path"], {"HOME": str(home)}

    def measure(
        self, name: str, command: Sequence[str], environment: dict[str, str]
    ) -> Iterator[Row]:
        """Run a method and compare its folder with the original on each text."""
        from torch2mlx.quantization.measure import measure_bits_per_weight
        from torch2mlx.verification.quality import measure_quality

        folder = self.scratch / name.replace(" ", "-").replace(",", "")
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", *command, str(folder)],
            env={**os.environ, **environment}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        if done.returncode:
            print(f"| {name} | failed: {(done.stderr.strip().splitlines() or ['?'])[-1]} |")
            return
        model = self._model()
        _take_weights(model, folder)
        size = measure_bits_per_weight(folder).bits_per_weight
        for text, windows, reference in self.texts:
            found = measure_quality(reference, model, windows)
            yield Row(
                name, size, found.perplexity, found.kl, found.kl_error, found.top1, seconds, text
            )


def _windows(tokenizer: Any, text: str, count: int) -> list[np.ndarray[Any, Any]]:
    """Windows of token ids [512], evenly spaced over the text's characters."""
    step = len(text) // count
    pieces = (text[i * step : i * step + 8 * _LENGTH] for i in range(count))
    windows = [np.array(tokenizer(piece).input_ids[:_LENGTH]) for piece in pieces]
    return [window for window in windows if len(window) == _LENGTH]


def _take_weights(model: Any, folder: Path) -> None:
    """Give a PyTorch model the values of an MLX folder, dequantized by MLX."""
    import mlx.core as mx
    import torch

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    formats = config.get("quantization", {})
    tensors: dict[str, Any] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        tensors.update(mx.load(str(path)))
    state = model.state_dict()
    for name, value in tensors.items():
        module = name.removesuffix(".weight")
        if module == name and not name.endswith("bias"):
            continue
        if f"{module}.scales" in tensors:
            form = formats.get(module, formats)
            value = mx.dequantize(
                value, tensors[f"{module}.scales"], tensors.get(f"{module}.biases"),
                group_size=form["group_size"], bits=form["bits"], mode=form.get("mode", "affine"),
                stream=mx.cpu,
            )  # fmt: skip
        numbers = np.array(value.astype(mx.float32, stream=mx.cpu))
        state[name].copy_(torch.from_numpy(numbers))
    model.tie_weights()


if __name__ == "__main__":
    raise SystemExit(main())
