"""Arithmetic on dynamic extents keeps the expression that gives the real one."""

from __future__ import annotations

import pytest

from torch2mlx.compiler.symbolic import SymbolicInt, source_of

CASES = [
    lambda n: n + 1,
    lambda n: 1 + n,
    lambda n: n - 2,
    lambda n: 7 - n,
    lambda n: n * 3,
    lambda n: -n,
    lambda n: n // 2,
    lambda n: n % 3,
    lambda n: -(-n // 4),
    lambda n: (n + 2) * (n - 1),
]


@pytest.mark.parametrize("index", range(len(CASES)))
@pytest.mark.parametrize("real", [4, 5, 12])
def test_the_expression_follows_the_arithmetic(index, real):
    found = CASES[index](SymbolicInt(4, "n"))
    assert found == CASES[index](4)
    assert eval(source_of(found), {"n": real}) == CASES[index](real)
