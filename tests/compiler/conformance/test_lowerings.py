"""Every lowering agrees with torch, and every lowering is tested."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from opinfo import harvests
from runner import dtypes_of, load_table, name_of, run, sample_limit
from runner import samples as samples_of_row
from table import Case

from torch2mlx.compiler.lowering.registry import registered

ROWS = sorted(load_table().values(), key=lambda row: name_of(row.overload))


def test_every_row_has_a_lowering() -> None:
    lowered = registered()
    assert [name_of(r.overload) for r in ROWS if r.overload not in lowered] == []


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: name_of(row.overload))
def test_every_lowering_has_a_case(row: Case) -> None:
    found = any(True for dtype in dtypes_of(row) for _ in samples_of_row(row, dtype))
    assert found, f"no sample of OpInfo reaches {name_of(row.overload)}: add one to a cases_*.py"


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: name_of(row.overload))
def test_no_type_loses_all_its_samples(row: Case) -> None:
    """What OpInfo offers in a type, and cannot be used, must be made up for by own samples."""
    for dtype in dtypes_of(row):
        found = list(harvests(row.overload, row.opinfo, dtype, sample_limit(row, dtype)))
        if any(h.offered for h in found) and not any(h.taken for h in found):
            reasons = {reason for h in found for reason in h.unusable}
            assert any(True for _ in samples_of_row(row, dtype)), f"{dtype}: {reasons}"


def _cases(wanted: Callable[[torch.dtype], bool]) -> list[Any]:
    return [
        pytest.param(row, dtype, id=f"{name_of(row.overload)}-{str(dtype).removeprefix('torch.')}")
        for row in ROWS
        for dtype in dtypes_of(row)
        if wanted(dtype)
    ]


def _compare(row: Case, dtype: torch.dtype) -> None:
    outcome = run(row, dtype)
    shown = "\n".join(outcome.problems[:8])
    assert not outcome.problems, f"{len(outcome.problems)} of {outcome.ran} samples:\n{shown}"


@pytest.mark.parametrize(("row", "dtype"), _cases(lambda dtype: dtype == torch.float32))
def test_lowering_agrees_on_a_few_samples(
    row: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFORMANCE_LIMIT", "2")
    _compare(row, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(("row", "dtype"), _cases(lambda _: True))
def test_lowering_agrees_with_torch(row: Case, dtype: torch.dtype) -> None:
    _compare(row, dtype)
