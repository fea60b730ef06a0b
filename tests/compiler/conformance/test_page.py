"""docs/operators.md is the page of this registry, this table and the recorded run."""

from __future__ import annotations

import json

from page import PAGE, RESULTS, page, sorted_rows
from runner import name_of


def test_every_operator_was_measured() -> None:
    recorded = json.loads(RESULTS.read_text())["operators"]
    assert sorted(recorded) == sorted(name_of(row.overload) for row in sorted_rows())
    empty = [name for name, result in recorded.items() if not result["samples"]]
    assert empty == []


def test_the_page_is_up_to_date() -> None:
    text = page(sorted_rows(), json.loads(RESULTS.read_text()))
    assert PAGE.read_text() == text, "run: python tests/compiler/conformance/page.py"
