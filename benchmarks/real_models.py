"""Solve tasks with pretrained models that installable packages carry: in PyTorch, and in MLX.

    python benchmarks/real_models.py                 # all that are installed
    python benchmarks/real_models.py facenet silero  # some

Each module of a task is converted, and every call that the task makes of it is compared with
PyTorch; then the answers are: the face, the pitch, the words.  A package that is missing is listed
with the command that installs it.  Packages import audio and image libraries for their
preprocessing; those are stood in for, because only the module is used.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

import torch

from pretrained import language, science, sound, vision
from pretrained.running import Outcome, solve
from pretrained.task import Case
from torch2mlx.errors import Torch2MLXError

CASES: dict[str, Case] = {
    **vision.CASES,
    **sound.CASES,
    **language.CASES,
    **science.CASES,
}
LIMIT = 1e-4


def row(name: str, outcome: Outcome) -> str:
    """One row of the table."""
    parts = outcome.measured.values()
    operators = " + ".join(str(m.operators) if m.operators else "port" for m in parts)
    gate = max(m.gate for m in parts)
    distance = max(m.distance for m in parts)
    calls = sum(m.calls for m in parts)
    agree = "same" if outcome.expected == outcome.found else "DIFFERS"
    return (
        f"| {name} ({outcome.parameters / 1e6:.2f} M) | {operators} | {gate:.1e} | "
        f"{distance:.1e} ({calls}) | {agree}: {outcome.found} |"
    )


def run(name: str, case: Case) -> bool:
    """Print a case's row; whether it agreed, or could not be run here."""
    torch.manual_seed(0)
    try:
        task = case.load()
    except (ImportError, OSError) as error:
        remedy = f"pip install --no-deps {case.requirement}"
        remedy += f"; apt install {case.system}" if case.system else ""
        print(f"| {name} | not run: {error}; {remedy} | | | |", flush=True)
        return True
    with tempfile.TemporaryDirectory() as scratch:
        try:
            outcome = solve(task, Path(scratch))
        except Torch2MLXError as error:
            print(f"| {name} | {' '.join(str(error).split())} | | | |", flush=True)
            return False
    print(row(name, outcome), flush=True)
    if outcome.expected != outcome.found:
        print(f"{name}, PyTorch: {outcome.expected}", file=sys.stderr)
    close = all(m.distance <= LIMIT for m in outcome.measured.values())
    return close and outcome.expected == outcome.found


def main() -> None:
    """Print the table; exit code 1 if a number or an answer differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(CASES)}; default: all")
    names = parser.parse_args().names or list(CASES)
    unknown = [name for name in names if name not in CASES]
    if unknown:
        parser.error(f"no case {', '.join(unknown)}; there is {', '.join(CASES)}")
    warnings.simplefilter("ignore")
    print("| model | operators | L2 in the gate | L2 in the task (calls) | answer |")
    print("|---|---|---|---|---|")
    passed = [run(name, CASES[name]) for name in names]
    if not all(passed):
        sys.exit(1)


if __name__ == "__main__":
    main()
