"""Expressions against numpy: any chain of movements, read by any region."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from torch2mlx.dtypes import DTYPES
from torch2mlx.planning.expressions import (
    Bits,
    Concat,
    Expr,
    Reshape,
    Slice,
    Source,
    Transpose,
    sources_of,
    stack,
)
from torch2mlx.planning.regions import full

Array = np.ndarray[Any, Any]
EXTENTS = st.sampled_from([1, 2, 3, 4, 6])


class Arrays:
    """A reader over arrays in memory that counts the elements it hands out."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}
        self.elements = 0

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        array = self.arrays[name]
        block = array[start:stop].copy() if array.ndim else array.copy()
        self.elements += block.size
        return block

    def read_flat(self, name: str, start: int, stop: int) -> Array:
        self.elements += stop - start
        return self.arrays[name].reshape(-1)[start:stop].copy()

    def new(self, shape: tuple[int, ...]) -> tuple[Expr, Array]:
        name = f"t{len(self.arrays)}"
        first = 1000 * len(self.arrays)
        array = np.arange(first, first + int(np.prod(shape)), dtype="<f4").reshape(shape)
        self.arrays[name] = array
        return Source(name, DTYPES["F32"], shape), array


def ranges(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[range, ...]:
    found = []
    for extent in shape:
        start = draw(st.integers(0, extent - 1))
        stop = draw(st.integers(start + 1, extent))
        found.append(range(start, stop, draw(st.integers(1, 3))))
    return tuple(found)


def cut(array: Array, region: tuple[range, ...]) -> Array:
    return array[tuple(slice(r.start, r.stop, r.step) for r in region)]


def split(draw: st.DrawFn, size: int) -> tuple[int, ...]:
    """A random shape of `size` elements."""
    extents = []
    while size > 1 and len(extents) < 4:
        extents.append(draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0])))
        size //= extents[-1]
    if size > 1 or not extents:
        extents.append(size)
    return tuple(extents)


@st.composite
def chains(draw: st.DrawFn) -> tuple[Arrays, Expr, Array, tuple[range, ...]]:
    reader = Arrays()
    expr, array = reader.new(tuple(draw(st.lists(EXTENTS, min_size=1, max_size=4))))
    for step in draw(st.lists(st.sampled_from("TRSC"), min_size=1, max_size=5)):
        if step == "T":
            axes = tuple(draw(st.permutations(range(array.ndim))))
            expr, array = Transpose(expr, axes), array.transpose(axes)
        elif step == "R":
            shape = split(draw, array.size)
            expr, array = Reshape(expr, shape), array.reshape(shape)
        elif step == "S":
            region = ranges(draw, array.shape)
            expr, array = Slice(expr, region), cut(array, region)
        else:
            axis = draw(st.integers(0, array.ndim - 1))
            extent = draw(st.integers(1, 3))
            shape = (*array.shape[:axis], extent, *array.shape[axis + 1 :])
            other, values = reader.new(shape)
            expr = Concat((expr, other), axis)
            array = np.concatenate([array, values], axis)
    return reader, expr, array, ranges(draw, array.shape)


@given(chains())
@settings(max_examples=400, deadline=None)
def test_any_chain_reads_like_numpy(case: tuple[Arrays, Expr, Array, tuple[range, ...]]) -> None:
    reader, expr, array, region = case
    assert expr.shape == array.shape
    np.testing.assert_array_equal(expr.read(region, reader), cut(array, region))
    np.testing.assert_array_equal(expr.read(full(expr.shape), reader), array)


@given(chains())
@settings(max_examples=100, deadline=None)
def test_empty_regions(case: tuple[Arrays, Expr, Array, tuple[range, ...]]) -> None:
    reader, expr, array, region = case
    for axis in range(array.ndim):
        empty = (*region[:axis], range(0), *region[axis + 1 :])
        assert (
            expr.read(empty, reader).shape
            == cut(array, region)[tuple([slice(None)] * axis + [slice(0)])].shape
        )


def test_a_row_block_of_a_stack_reads_only_its_rows() -> None:
    reader = Arrays()
    parts = [reader.new((8, 16)) for _ in range(4)]
    stacked = stack([expr for expr, _ in parts])
    rows = Reshape(stacked, (32, 16))
    got = rows.read((range(10, 14), range(16)), reader)
    np.testing.assert_array_equal(got, np.concatenate([a for _, a in parts])[10:14])
    assert reader.elements == 4 * 16
    assert [source.name for source in sources_of(stacked)] == ["t0", "t1", "t2", "t3"]


def test_bits_follow_views_of_the_last_axis() -> None:
    reader = Arrays()
    expr, array = reader.new((3, 4))
    viewed = Bits(expr, DTYPES["U16"])
    np.testing.assert_array_equal(
        viewed.read((range(1, 3), range(1, 8, 2)), reader), array.view("<u2")[1:3, 1:8:2]
    )
    assert Bits(viewed, DTYPES["F32"]).shape == (3, 4)
