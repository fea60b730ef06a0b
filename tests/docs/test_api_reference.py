"""docs/api.md is what the docstrings say."""

from __future__ import annotations

import runpy
from pathlib import Path

import torch2mlx

ROOT = Path(__file__).parents[2]


def test_the_page_is_fresh() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "api_reference.py"))
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert page == script["render"](), "run python scripts/api_reference.py"
    for name in torch2mlx.__all__:
        if callable(getattr(torch2mlx, name)) and not name[0].isupper():
            assert f"### torch2mlx.{name}\n" in page
