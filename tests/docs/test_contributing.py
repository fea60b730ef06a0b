"""CONTRIBUTING.md names the packages and files that there are."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "torch2mlx"
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_every_package_has_its_row() -> None:
    rows = "\n".join(line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `"))
    listed = set(re.findall(r"`(\w+)`", rows))
    packages = {p.parent.name for p in SOURCE.glob("*/__init__.py")} - {"cli"}
    assert packages <= listed


def test_what_the_stages_of_the_compiler_name_exists() -> None:
    table = PAGE.partition("| stage | where |")[2].partition("Where the next one goes")[0]
    names = set(re.findall(r"`([\w.]+)`", table))
    assert names
    assert [n for n in sorted(names) if not (SOURCE / "compiler" / n).exists()] == []
    parts = {p.parent.name for p in (SOURCE / "compiler").glob("*/__init__.py")}
    assert parts <= names
