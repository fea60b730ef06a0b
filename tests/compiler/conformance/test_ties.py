"""Where elements are equal torch leaves the index open: what is checked is the value there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from runner import lower, to_tensor
from table import call

aten = torch.ops.aten
TIED = torch.tensor([[3, 1, 3, 1, 2, 2, 3, 0], [5, 5, 5, 5, 5, 5, 5, 5]])


def results(overload: Any, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    made, _ = lower(overload, call(*args))
    values, places = (to_tensor(value.array) for value in made)
    return values, places.long()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8])
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_topk_names_places_of_its_values(dtype: torch.dtype, largest: bool, k: int) -> None:
    x = TIED.to(dtype)
    values, places = results(aten.topk.default, x, k, -1, largest, True)
    assert torch.equal(values, x.topk(k, -1, largest).values)
    assert torch.equal(x.gather(-1, places), values)
    assert all(len(set(row)) == k for row in places.tolist())


def test_topk_takes_the_first_of_equal_elements() -> None:
    _, places = results(aten.topk.default, TIED, 4, -1, True, True)
    assert places.tolist() == [[0, 2, 6, 4], [0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("overload", "reference"),
    [
        (aten.kthvalue.default, lambda x: x.kthvalue(3, -1)),
        (aten.median.dim, lambda x: x.median(-1)),
        (aten.nanmedian.dim, lambda x: x.nanmedian(-1)),
        (aten.mode.default, lambda x: x.mode(-1)),
    ],
    ids=["kthvalue", "median", "nanmedian", "mode"],
)
def test_order_statistics_name_a_place_of_their_value(
    overload: Any, reference: Callable[[torch.Tensor], Any]
) -> None:
    args = (3, -1) if overload is aten.kthvalue.default else (-1,)
    values, places = results(overload, TIED, *args)
    assert torch.equal(values, reference(TIED).values)
    assert torch.equal(TIED.gather(-1, places[:, None])[:, 0], values)


@pytest.mark.parametrize("descending", [False, True])
def test_sort_keeps_equal_elements_in_order(descending: bool) -> None:
    x = torch.arange(3000) % 7
    values, places = results(aten.sort.default, x, -1, descending)
    expected = x.sort(stable=True, descending=descending)
    assert torch.equal(values, expected.values)
    assert torch.equal(places, expected.indices)
