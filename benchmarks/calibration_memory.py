"""Peak memory of calibrating layers of an 8B model: widths of 4,096 and 14,336, random weights.

    python benchmarks/calibration_memory.py FOLDER [--tokens 512]

Layers come one after the other and only one is in memory, so a model of 32 needs no more than one
of two.  FOLDER gets the checkpoint (3 GB), which is kept for another run.  The whole command runs,
`convert -q --calibrate`, on the CPU or, where there is one, on the GPU, whose peak is told too.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from fabricate import SHAPES, fabricate
from processes import measure

_CHILD = """
import atexit, os, sys
if os.environ.get("CALIBRATE_ON_CPU"):
    import torch
    torch.cuda.is_available = lambda: False
def tell():
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        print(f"GPU: {torch.cuda.max_memory_allocated() / 1e9:.2f} GB allocated at most")
atexit.register(tell)
if rounds := os.environ.get("CALIBRATE_ROUNDS"):
    from torch2mlx.calibration import conversion, fitting
    conversion.Settings = lambda: fitting.Settings(sweeps=int(rounds))
from torch2mlx.cli import run
sys.argv[0] = "torch2mlx"
run()
"""


def main() -> None:
    """Fabricate, calibrate, print the peaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-8b-two-layers")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--cpu", action="store_true", help="leave the GPU alone")
    parser.add_argument(
        "--rounds", help="of least squares and codes (3): fewer take less time, and the same memory"
    )
    args = parser.parse_args()
    if args.rounds:
        os.environ["CALIBRATE_ROUNDS"] = args.rounds
    if args.cpu:
        os.environ["CALIBRATE_ON_CPU"] = "1"
    fabricate(args.shape, args.folder)
    with tempfile.TemporaryDirectory(dir=args.folder.parent) as scratch:
        text = Path(scratch) / "text.txt"
        words = (f"w{i * 7919 % 30000}" for i in range(40 * args.tokens))
        text.write_text(" ".join(words), encoding="utf-8")
        log = Path(scratch) / "log"
        command = [
            sys.executable, "-c", _CHILD, "convert", str(args.folder), f"{scratch}/out", "-q",
            "--calibrate", "--calibration-text", str(text), "--no-verify", "--quiet",
            "--calibration-tokens", str(args.tokens), "--max-context", str(args.length),
        ]  # fmt: skip
        used = measure(command, log)
        told = [line for line in log.read_text().splitlines() if line.startswith("GPU")]
    print(
        f"{args.shape}, {args.tokens} tokens: peak RSS {used.rss / 1e9:.2f} GB, "
        f"{used.wall:.0f} s, {used.cpu:.0f} s of CPU time; {'; '.join(told) or 'no GPU'}"
    )


if __name__ == "__main__":
    main()
