"""Errors of other libraries may say much, begin with an empty line, or say nothing."""

from __future__ import annotations

import pytest

from torch2mlx.messages import first_line


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no such file\nat line 3"), "no such file"),
        (ValueError("\n\n  indented\n"), "indented"),
        (ImportError(""), "ImportError"),
        (KeyError(), "KeyError"),
        (RuntimeError("x" * 5000), "x" * 300),
    ],
)
def test_one_line_whatever_is_said(error: Exception, text: str) -> None:
    assert first_line(error) == text
