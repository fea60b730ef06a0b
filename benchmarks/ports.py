"""Every architecture of the zoo, converted by mlx-lm and by torch2mlx, compared with PyTorch.

    python benchmarks/ports.py                         all cases, writes docs/ports.md
    python benchmarks/ports.py --only llama,gpt2       some cases, to the screen alone

Each case is a tiny random checkpoint (`tests/parity/zoo.py`), saved by transformers, and once
more with the same configuration in the flat style of transformers 4.  Both converters write a
float32 folder, with their own defaults otherwise; mlx-lm loads it, and its logits are compared
with PyTorch's, at 64 and at 10 tokens, the larger relative L2 error counting.

    right    below 1e-4          wrong    converted without complaint, but not equal
    refused  torch2mlx says why  failed   ended in another error

A case runs in a process of its own, with a time limit, so that none can disturb another.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "parity"))

from checkpoints import (  # noqa: E402
    TOLERANCE,
    Saved,
    add_tokenizer,
    model_error,
    prepare,
    quiet_libraries,
)
from zoo import CASES  # noqa: E402

STYLES = {"saved": "config of transformers 5", "flat": "flat config"}
CONVERTERS = ("mlx-lm", "torch2mlx")
_COLUMNS = [(converter, style) for style in STYLES for converter in CONVERTERS]

Result = dict[str, Any]


def main() -> int:
    """Run the table, or one case of it in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Raw)
    parser.add_argument("--only", help="names of cases, separated by commas")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for one case")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/ports.json")
    parser.add_argument("--markdown", type=Path, default=ROOT / "docs/ports.md")
    args = parser.parse_args()
    if args.case:
        print(json.dumps(run_case(args.case)))
        return 0
    names = [c.name for c in CASES if not args.only or c.name in args.only.split(",")]
    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda name: _in_process(name, args.limit), names))
    document = render(results)
    if args.only:
        print(document)
    else:
        for path in (args.json, args.markdown):
            path.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=1) + "\n")
        args.markdown.write_text(document)
    return int(
        any(_outcome(r, "torch2mlx", s) in ("wrong", "failed") for r in results for s in STYLES)
    )


_Raw = argparse.RawDescriptionHelpFormatter


def _in_process(name: str, limit: float) -> Result:
    command = [sys.executable, str(Path(__file__).resolve()), "--case", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, env=environment, check=False
        )
        result: Result = json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        result = _nothing(name, f"not finished after {limit:.0f} s")
    except (IndexError, ValueError):
        result = _nothing(name, (done.stderr.strip().splitlines() or ["no output"])[-1])
    print(_line(result), file=sys.stderr, flush=True)
    return result


def _nothing(name: str, reason: str) -> Result:
    model_type = next(case.model_type for case in CASES if case.name == name)
    failed = {"outcome": "failed", "reason": reason}
    return {
        "name": name,
        "model_type": model_type,
        "limits": [],
        **{style: dict.fromkeys(CONVERTERS, failed) for style in STYLES},
    }


def run_case(name: str) -> Result:
    """Both converters on both styles of one case."""
    from torch2mlx.architectures.limits import known_limits

    quiet_libraries()
    case = next(case for case in CASES if case.name == name)
    result: Result = {"name": name, "model_type": case.model_type}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "saved"
        saved = prepare(case, folder)
        add_tokenizer(case.model_type, folder)
        for style in STYLES:
            if style == "flat":
                if saved.flat is None:
                    result[style] = None
                    continue
                (folder / "config.json").write_text(json.dumps(_tagged(saved.flat), default=str))
            config = saved.config if style == "saved" else saved.flat
            result["limits"] = known_limits(config)
            result[style] = {
                converter: _attempt(convert, saved, folder, Path(scratch) / f"{converter}-{style}")
                for converter, convert in (("mlx-lm", _mlx_lm), ("torch2mlx", _torch2mlx))
            }
    return result


def _tagged(value: Any) -> Any:
    """Non-finite numbers as transformers writes them into JSON."""
    if isinstance(value, dict):
        return {k: _tagged(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_tagged(v) for v in value]
    return {"__float__": "Infinity"} if value == float("inf") else value


def _mlx_lm(source: Path, destination: Path) -> None:
    from mlx_lm import convert

    convert(hf_path=str(source), mlx_path=str(destination), dtype="float32")


def _torch2mlx(source: Path, destination: Path) -> None:
    import torch2mlx

    torch2mlx.convert(source, destination, dtype="float32")


def _attempt(
    convert: Callable[[Path, Path], None], saved: Saved, source: Path, destination: Path
) -> Result:
    import contextlib
    import io

    from mlx_lm.utils import load_model

    from torch2mlx.errors import Torch2MLXError

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            convert(source, destination)
    except Torch2MLXError as error:
        return {"outcome": "refused", "reason": str(error), "kind": type(error).__name__}
    except (Exception, SystemExit) as error:  # whatever another converter ends in
        return {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"}
    try:
        error = model_error(saved, load_model(destination, trust_remote_code=True)[0])
    except Exception as problem:  # a folder that its own library cannot run
        return {"outcome": "failed", "reason": f"loading: {type(problem).__name__}: {problem}"}
    return {"outcome": "right" if error < TOLERANCE else "wrong", "error": error}


def _outcome(result: Result, converter: str, style: str) -> str:
    both = result[style]
    return str(both[converter]["outcome"]) if both else "–"


def _line(result: Result) -> str:
    cells = [f"{c} {_outcome(result, c, s)}" for c, s in _COLUMNS]
    return f"{result['name']}: " + ", ".join(cells)


def render(results: Sequence[Result]) -> str:
    """The document: counts, what is not right and why, and every case."""
    return "\n".join([*_head(results), *_reasons(results), *_table(results)]) + "\n"


def _head(results: Sequence[Result]) -> list[str]:
    libraries = ", ".join(f"{n} {version(n)}" for n in ("mlx-lm", "mlx", "transformers", "torch"))
    types = len({r["model_type"] for r in results})
    counts = {(c, s): Counter(_outcome(r, c, s) for r in results if r[s]) for c, s in _COLUMNS}
    lines = [
        "# Architectures: which conversions equal PyTorch",
        "",
        "Written by `python benchmarks/ports.py`; do not edit.",
        "",
        *textwrap.wrap(
            f"{len(results)} tiny random checkpoints over {types} model types, saved by "
            "transformers and, where the older style can say it, once more with a flat "
            "`config.json` as transformers 4 wrote it. Both converters write float32; mlx-lm "
            "loads the result, and its logits are compared with PyTorch's. **Right** is a "
            f"relative L2 error below {TOLERANCE:.0e}, at 64 and at 10 tokens; **wrong** is a "
            "conversion that ends without complaint and is not right; torch2mlx proves each "
            f"conversion before it publishes it. Measured with {libraries}.",
            100,
        ),
        "",
        "| | checkpoints | right | wrong | refused, with the reason | failed |",
        "|---|---|---|---|---|---|",
    ]
    for (converter, style), count in counts.items():
        cells = [str(count.get(o, 0)) for o in ("right", "wrong", "refused", "failed")]
        lines.append(
            f"| {converter}, {STYLES[style]} | {sum(count.values())} | {' | '.join(cells)} |"
        )
    return lines


def _reasons(results: Sequence[Result]) -> list[str]:
    lines = [
        "",
        "## What torch2mlx refuses, and why",
        "",
        "| case | reason |",
        "|---|---|",
    ]
    for result in results:
        found = [both["torch2mlx"] for s in STYLES if (both := result[s])]
        reasons = [f["reason"] for f in found if f["outcome"] in ("refused", "failed")]
        if reasons:
            known = "; ".join(result["limits"])
            lines.append(f"| {result['name']} | {_plain(known or reasons[0])} |")
    return lines


def _plain(reason: str) -> str:
    text = " ".join(reason.split()).replace("|", "\\|")
    return text if len(text) < 330 else text[:327] + "…"


def _table(results: Sequence[Result]) -> list[str]:
    head = " | ".join(f"{c}, {'flat' if s == 'flat' else 'as saved'}" for c, s in _COLUMNS)
    lines = [
        "",
        "## Every case",
        "",
        f"| case | model type | {head} |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        cells = [_cell(result, c, s) for c, s in _COLUMNS]
        lines.append(f"| {result['name']} | {result['model_type']} | {' | '.join(cells)} |")
    return lines


def _cell(result: Mapping[str, Any], converter: str, style: str) -> str:
    both = result[style]
    if not both:
        return "–"
    found = both[converter]
    error = f" {found['error']:.0e}" if "error" in found else ""
    text = f"{found['outcome']}{error}"
    return f"**{text}**" if found["outcome"] == "wrong" else text


if __name__ == "__main__":
    sys.exit(main())
