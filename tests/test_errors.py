"""Messages hold names from files; every terminal must be able to show them."""

from __future__ import annotations

import pytest

from torch2mlx import errors
from torch2mlx.errors import SourceError, Torch2MLXError


def test_names_cannot_steer_the_terminal() -> None:
    text = str(SourceError("tensor 'a\x1b[2J\ud800\u202eb': line\none\ttwo é 你好 😀"))
    assert text == "tensor 'a\\x1b[2J\\ud800\\u202eb': line\none\ttwo é 你好 😀"
    text.encode()


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_one_of_ours_and_listed(name: str) -> None:
    assert issubclass(getattr(errors, name), Torch2MLXError)
    assert errors.__doc__ is not None
    assert name in errors.__doc__
