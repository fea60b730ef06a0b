"""docs/sources.md is the page of these tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path

FILE = Path(__file__).with_name("sources_page.py")


def test_the_page_is_up_to_date_and_stands_on_tests() -> None:
    spec = importlib.util.spec_from_file_location("sources_page", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    missing = [(f, n) for f, n in module.tests_named() if n not in module.functions(f)]
    assert missing == []
    assert module.PAGE.read_text() == module.page(), "run: python tests/sources/sources_page.py"
