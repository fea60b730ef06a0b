"""Stored grids follow rows through everything a port does to them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from torch2mlx.dtypes import DTYPES
from torch2mlx.planning.expressions import Concat, Reshape, Slice, Source, Transpose, stack
from torch2mlx.planning.functions import cast
from torch2mlx.planning.grids import StoredGrids
from torch2mlx.quantization.scheme import Scheme
from torch2mlx.sources.base import Checkpoint, Packed, TensorSource

GRID = Scheme(4, 32)


class Nothing(TensorSource):
    tensors: ClassVar = {}
    files = ()

    def read(self, name, start=0, stop=None):
        raise AssertionError("planning reads nothing")


def packed(name, rows=8, columns=64, bits=4):
    return Packed(
        bits,
        32,
        Source(f"{name}#codes", DTYPES["U32"], (rows, columns * bits // 32)),
        Source(f"{name}#scales", DTYPES["F16"], (rows, columns // 32)),
        Source(f"{name}#biases", DTYPES["F16"], (rows, columns // 32)),
    )


@pytest.fixture
def grids():
    state = {name: Source(name, DTYPES["F32"], (8, 64)) for name in ("a", "b", "c", "plain")}
    forms = {"a": packed("a"), "b": packed("b"), "c": packed("c", bits=8)}
    checkpoint = Checkpoint("x", Path(), "gguf", {}, Nothing(), state, packed=forms)
    return StoredGrids(checkpoint), state


def test_a_stack_of_experts_keeps_their_grid(grids):
    stored, state = grids
    form = stored.of(stack([state["a"], state["b"]]), GRID)
    assert form.weight.shape == (2, 8, 8)
    assert form.scales.shape == form.biases.shape == (2, 8, 2)


@pytest.mark.parametrize(
    "move",
    [
        lambda e: Slice(e, (range(0, 8, 2), range(64))),
        lambda e: Reshape(e, (2, 4, 64)),
        lambda e: Transpose(Reshape(e, (2, 4, 64)), (1, 0, 2)),
        lambda e: Concat((e, e), 0),
    ],
)
def test_rows_may_move(grids, move):
    stored, state = grids
    form = stored.of(move(state["a"]), GRID)
    plain = move(state["a"])
    assert form.weight.shape == (*plain.shape[:-1], 8)
    assert form.scales.shape == (*plain.shape[:-1], 2)


@pytest.mark.parametrize(
    "change",
    [
        lambda e: Slice(e, (range(8), range(32))),
        lambda e: Reshape(e, (16, 32)),
        lambda e: Transpose(e, (1, 0)),
        lambda e: Concat((e, e), 1),
        lambda e: cast(e, DTYPES["F16"]),
    ],
)
def test_what_touches_the_last_axis_or_the_values_loses_the_grid(grids, change):
    stored, state = grids
    assert stored.of(change(state["a"]), GRID) is None


def test_another_format_or_a_plain_tensor_has_no_grid(grids):
    stored, state = grids
    assert stored.of(state["a"], Scheme(4, 64)) is None
    assert stored.of(state["a"], None) is None
    assert stored.of(state["plain"], GRID) is None
    assert stored.of(stack([state["a"], state["plain"]]), GRID) is None
    assert stored.of(stack([state["a"], state["c"]]), GRID) is None


def test_the_grid_of_an_expression_is_found(grids):
    stored, state = grids
    assert stored.scheme_of(state["c"]) == Scheme(8, 32)
    assert stored.scheme_of(stack([state["a"], state["b"]])) == GRID
    assert stored.scheme_of(state["plain"]) is None


def test_packed_forms_are_values(grids):
    assert replace(packed("a"), bits=8) != packed("a")
