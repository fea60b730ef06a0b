"""Write docs/api.md from the docstrings of what is public.

python scripts/api_reference.py [--check]
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
_HEADER = """# API reference

Written by `python scripts/api_reference.py` from the docstrings; do not edit it.
Importing torch2mlx loads neither torch nor MLX. Everything raises `torch2mlx.Torch2MLXError` or
one of its subclasses for what a user can act on.
"""
_PARTS = ("Args:", "Returns:", "Raises:", "Attributes:")


def public_objects() -> dict[str, list[Any]]:
    """What the page describes, by section."""
    import torch2mlx
    from torch2mlx import api, errors
    from torch2mlx.benchmarking import Benchmark, Row, Spread
    from torch2mlx.compiler.route import Compiled
    from torch2mlx.diagnosis import Examination, Finding
    from torch2mlx.inspection import Inspection
    from torch2mlx.options import ConvertOptions
    from torch2mlx.packaging.manifest import Manifest
    from torch2mlx.selection import Selection, Strategy

    plain = [getattr(torch2mlx, name) for name in torch2mlx.__all__]
    kinds = [getattr(errors, name) for name in errors.__all__]
    return {
        "Functions": [f for f in plain if inspect.isfunction(f)],
        "Options": [ConvertOptions],
        "Results": [
            Inspection, Selection, Strategy, api.Conversion, Compiled, Manifest, api.Verification,
            api.Generation, Benchmark, Row, Spread, Examination, Finding,
        ],
        "Errors": [kind for kind in kinds if inspect.isclass(kind)],
    }  # fmt: skip


def render() -> str:
    """The page."""
    lines = [_HEADER]
    for section, objects in public_objects().items():
        lines.append(f"## {section}\n")
        for found in objects:
            lines.append(_entry(found))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _entry(found: Any) -> str:
    name = f"torch2mlx.{found.__name__}" if inspect.isfunction(found) else found.__name__
    text = f"### {name}\n\n"
    if inspect.isfunction(found):
        text += f"```python\n{_signature(found)}\n```\n\n"
    elif not issubclass(found, Exception):
        text += f"`{found.__module__}.{found.__qualname__}`\n\n"
    text += _prose(inspect.getdoc(found) or "")
    if inspect.isclass(found) and not issubclass(found, Exception):
        for method, value in vars(found).items():
            function = value.fget if isinstance(value, property) else value
            if method.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
                continue
            first = inspect.cleandoc(function.__doc__).split("\n\n")[0].replace("\n", " ")
            call = method if isinstance(value, property) else f"{method}()"
            text += f"- `.{call}`: {first}\n"
    return text + "\n"


def _signature(found: Any) -> str:
    """Parameters, one a line; annotations are the texts in the source."""
    lines = [f"torch2mlx.{found.__name__}("]
    starred = False
    for parameter in inspect.signature(found).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            lines.append("    *,")
            starred = True
        mark = {parameter.VAR_KEYWORD: "**", parameter.VAR_POSITIONAL: "*"}.get(parameter.kind, "")
        text = f"    {mark}{parameter.name}: {parameter.annotation}"
        if parameter.default is not parameter.empty:
            text += f" = {parameter.default!r}"
        lines.append(text + ",")
    return "\n".join([*lines, f") -> {inspect.signature(found).return_annotation}"])


def _prose(text: str) -> str:
    """Docstring sections as lists."""
    out, part = [], ""
    for line in text.splitlines():
        if line.strip() in _PARTS and not line.startswith(" "):
            part = line.strip()
            out += ["", f"**{part[:-1]}**", ""]
        elif part and line.startswith("        "):
            out[-1] += " " + line.strip()
        elif part and line.startswith("    "):
            names, colon, rest = line.strip().partition(": ")
            out.append(f"- `{names}`: {rest}" if colon else f"- {line.strip()}")
        else:
            part = "" if line.strip() else part
            out.append(line)
    return "\n".join(out).rstrip() + "\n\n"


def main() -> None:
    """Write the page, or say whether it is fresh."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="fail where the page is old")
    if not parser.parse_args().check:
        PAGE.write_text(render(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != render():
        sys.exit(f"{PAGE} is old: python scripts/api_reference.py")


if __name__ == "__main__":
    main()
