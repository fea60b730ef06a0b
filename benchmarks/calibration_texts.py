"""What the calibration text is worth: the same model, quantized with several, on equal windows.

    python benchmarks/calibration_texts.py MODEL --test TEST.txt --corpus CORPUS.txt --out RESULTS
    python benchmarks/calibration_texts.py MODEL --test TEST.txt --corpus CHATS.jsonl --sampled 4096

The rows: round to nearest; the default text (what a Python installation carries); every --corpus
(.txt, .jsonl of texts or chats); and, with --sampled, the default text with so many of the tokens
drawn from the model itself.  Each is a conversion in a process of its own, measured by
`quality_measure.py` on the same windows of 512 tokens; ± is the standard error between windows.
RESULTS/texts.json holds what is known, and a row in it is not measured again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent


def main() -> int:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--test", type=Path, action="append", required=True)
    parser.add_argument("--corpus", type=Path, action="append", default=[])
    parser.add_argument("--sampled", type=int, default=0, help="tokens drawn from the model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bits", default="4")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--memory-limit", default="3GB")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "texts.json"
    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for name, options in rows(args):
        if name not in known:
            known[name] = measured(args, name, options)
            file.write_text(json.dumps(known, indent=1) + "\n")
    print("| text | bpw | test text | mean KL | top-1 % | perplexity |\n|---|---|---|---|---|---|")
    for name, found in known.items():
        for text, figures in found["texts"].items():
            print(
                f"| {name} | {found['bits_per_weight']:.2f} | {text} | {figures['kl']:.4f} ± "
                f"{figures['kl_error']:.4f} | {100 * figures['top1']:.1f} "
                f"| {figures['perplexity']:.2f} |"
            )
    return 0


def rows(args: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """(name, options of convert) of each text."""
    calibrate = ["--calibrate", "--calibration-tokens", str(args.tokens)]
    yield "none: round to nearest", []
    yield "the Python installation's (default)", calibrate
    for corpus in args.corpus:
        yield corpus.name, [*calibrate, "--calibration-text", str(corpus)]
    if args.sampled:
        name = f"default, {args.sampled} tokens of {args.tokens} drawn from the model"
        yield name, [*calibrate, "--calibration-samples", str(args.sampled)]


def measured(args: argparse.Namespace, name: str, options: list[str]) -> dict[str, Any]:
    """Convert with one text, and measure the folder."""
    folder = args.out / "".join(c if c.isalnum() else "-" for c in name)
    if not folder.exists():
        command = ["convert", str(args.model), str(folder), "-q", "--q-bits", args.bits, *options]
        command += ["--no-verify", "--quiet", "--memory-limit", args.memory_limit]
        subprocess.run(
            [sys.executable, "-m", "torch2mlx", *command], check=True, stdout=subprocess.DEVNULL
        )
    tests = [word for path in args.test for word in ("--test", str(path))]
    done = subprocess.run(
        [
            sys.executable, str(_HERE / "quality_measure.py"), str(args.model), str(folder),
            *tests, "--windows", str(args.windows), "--prompts", "0",
        ],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    raise SystemExit(main())
