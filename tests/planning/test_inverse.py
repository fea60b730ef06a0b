from __future__ import annotations

from math import prod
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from torch2mlx.architectures.tracing import trace_call
from torch2mlx.dtypes import DTYPES
from torch2mlx.planning.expressions import Bits, Concat, Reshape, Slice, Source, Transpose, stack
from torch2mlx.planning.functions import Apply, Whole, cast
from torch2mlx.planning.inverse import NotInvertible, push, restore_state
from torch2mlx.planning.regions import full

F32, BF16, U8, U16, U32 = (DTYPES[n] for n in ("F32", "BF16", "U8", "U16", "U32"))


def reader_of(tensors):
    def read(name, start=0, stop=None):
        value = tensors[name]
        return value.copy() if value.ndim == 0 else value[start:stop].copy()

    def read_flat(name, start, stop):
        return tensors[name].reshape(-1)[start:stop].copy()

    return SimpleNamespace(read=read, read_flat=read_flat)


def whole(expr, tensors):
    """The value of a movement expression by plain numpy, in memory."""
    match expr:
        case Source():
            return tensors[expr.name]
        case Transpose():
            return whole(expr.operand, tensors).transpose(expr.axes)
        case Slice():
            return whole(expr.operand, tensors)[np.ix_(*expr.ranges)]
        case Concat():
            return np.concatenate([whole(o, tensors) for o in expr.operands], expr.axis)
        case Reshape():
            return whole(expr.operand, tensors).reshape(expr.shape)
        case Bits():
            return np.ascontiguousarray(whole(expr.operand, tensors)).view(expr.dtype.numpy)


def new_source(tensors, shape):
    name = f"t{len(tensors)}"
    start = 1 + sum(t.size for t in tensors.values())
    tensors[name] = np.arange(start, start + prod(shape), dtype=np.uint32).reshape(shape)
    return Source(name, U32, shape)


def ranges_in(draw, shape):
    def one(extent):
        start = draw(st.integers(0, extent - 1))
        stop = draw(st.integers(start + 1, extent))
        return range(start, stop, draw(st.integers(1, 3)))

    return tuple(one(n) for n in shape)


def factorizations(n):
    return [
        (n,), (1, n), (n, 1),
        *((a, n // a) for a in range(2, n) if n % a == 0),
        *((a, b, n // a // b) for a in range(2, n) for b in range(2, n) if n % (a * b) == 0),
    ]  # fmt: skip


@st.composite
def movements(draw):
    tensors = {}
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    expr = new_source(tensors, shape)
    for _ in range(draw(st.integers(1, 6))):
        match draw(st.sampled_from(["transpose", "slice", "concat", "stack", "reshape", "bits"])):
            case "transpose":
                expr = Transpose(expr, tuple(draw(st.permutations(range(len(expr.shape))))))
            case "slice":
                expr = Slice(expr, ranges_in(draw, expr.shape))
            case "concat":
                axis = draw(st.integers(0, len(expr.shape) - 1))
                extra = (*expr.shape[:axis], draw(st.integers(1, 3)), *expr.shape[axis + 1 :])
                expr = Concat((expr, new_source(tensors, extra)), axis)
            case "stack" if len(expr.shape) < 4:
                operands = [expr, new_source(tensors, expr.shape)]
                expr = stack(operands, draw(st.integers(0, len(expr.shape))))
            case "reshape":
                expr = Reshape(expr, draw(st.sampled_from(factorizations(expr.size))))
            case "bits":
                expr = Bits(Bits(expr, draw(st.sampled_from([U8, F32]))), U32)
    return expr, ranges_in(draw, expr.shape), tensors


@settings(max_examples=200, deadline=None)
@given(movements())
def test_push_is_the_inverse_of_read(case):
    expr, region, tensors = case
    value = whole(expr, tensors)[np.ix_(*region)]
    assert np.array_equal(expr.read(region, reader_of(tensors)), value)
    try:
        leaves = list(push(expr, region, value))
    except NotInvertible as error:  # bytes that a stride cut out of their words
        if "bit view" not in str(error):
            raise
        reject()
    for leaf in leaves:
        assert leaf.chain == ()
        assert all(r.step > 0 for r in leaf.region)
        assert np.array_equal(leaf.value, tensors[leaf.name][np.ix_(*leaf.region)])
    assert sum(leaf.value.size for leaf in leaves) == value.size


def test_a_reversed_slice_is_traced_to_ascending_regions():
    tensors = {}
    expr = Slice(new_source(tensors, (5, 4)), (range(4, -1, -1), range(4)))
    value = tensors["t0"][::-1][1:3]
    (leaf,) = push(expr, (range(1, 3), range(4)), value)
    assert leaf.region == (range(2, 4), range(4))
    assert np.array_equal(leaf.value, tensors["t0"][2:4])


def test_functions_are_remembered_from_source_to_output():
    source = Source("w", F32, (3, 4))
    inner = cast(source, BF16)
    outer = Apply("add", lambda x: x + 1, (Transpose(inner, (1, 0)),), BF16, (4, 3))
    value = np.arange(12, dtype=np.uint16).reshape(4, 3)
    (leaf,) = push(outer, full((4, 3)), value)
    assert leaf.chain == (inner, outer)
    assert np.array_equal(leaf.value, value.T)


def test_equal_width_view_under_a_function_joins_the_chain():
    view = Bits(Source("w", U16, (2, 4)), BF16)
    top = cast(view, F32)
    (leaf,) = push(top, full((2, 4)), np.ones((2, 4), np.float32))
    assert leaf.chain == (view, top)


@pytest.mark.parametrize(
    ("expr", "names"),
    [
        (
            Apply("multiply", lambda a, b: a * b, (Source("a", F32, (2, 2)),) * 2, F32, (2, 2)),
            "multiply joins several tensors",
        ),
        (
            Apply("negative", lambda a: -a, (Source("a", F32, (2, 1)),), F32, (2, 3)),
            "negative broadcasts",
        ),
        (
            Whole("einsum", lambda a: a, (Source("a", F32, (2, 2)),), F32, (2, 2)),
            "einsum needs whole tensors",
        ),
    ],
)
def test_what_cannot_be_inverted_names_the_node(expr, names):
    with pytest.raises(NotInvertible, match=names):
        list(push(expr, full(expr.shape), np.ones(expr.shape, np.float32)))


def test_a_view_cut_inside_of_an_element_is_refused():
    expr = Bits(Source("w", U32, (2, 2)), U8)
    with pytest.raises(NotInvertible, match="inside of an element"):
        list(push(expr, (range(2), range(1, 5)), np.zeros((2, 4), np.uint8)))


def test_a_wider_view_is_undone_for_whole_elements():
    tensors = {"w": np.arange(24, dtype=np.uint8).reshape(2, 12)}
    expr = Bits(Source("w", U8, (2, 12)), U32)
    region = (range(2), range(1, 3))
    (leaf,) = push(expr, region, expr.read(region, reader_of(tensors)))
    assert leaf.region == (range(2), range(4, 12))
    assert np.array_equal(leaf.value, tensors["w"][:, 4:])


def test_stops_end_the_walk_above_the_stored_tensors():
    stored = Source("blk.0.attn_q", F32, (4, 2))
    hub = Reshape(Transpose(Reshape(stored, (2, 2, 2)), (1, 0, 2)), (4, 2))
    output = Concat((hub, Source("other", F32, (1, 2))), 0)
    value = np.arange(10, dtype=np.float32).reshape(5, 2)
    leaves = list(push(output, full((5, 2)), value, {id(hub): "q_proj.weight"}))
    assert [leaf.name for leaf in leaves] == ["q_proj.weight", "other"]
    assert np.array_equal(leaves[0].value, value[:4])


def rows_from(outputs, tensors, calls=None):
    """`read_output` of a folder whose values are those of the expressions, by MLX."""

    def read(name, start, stop):
        expr = outputs[name]
        if calls is not None:
            calls.append((name, start, stop))
        region = (range(start, stop), *full(expr.shape[1:])) if expr.shape else ()
        bits = np.ascontiguousarray(cast(expr, F32).read(region, reader_of(tensors)))
        return bits

    return read


def test_a_state_is_rebuilt_from_fused_stacked_and_shifted_outputs():
    rng = np.random.default_rng(0)
    shapes = {
        "qkv": (12, 4), "e0": (6, 4), "e1": (6, 4), "norm": (4,), "a_log": (3,),
        "head": (5, 4), "unused": (2,), "scale": (),
    }  # fmt: skip
    tensors = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    tensors = {k: np.asarray(v, np.float32) for k, v in tensors.items()}
    state = {k: Source(k, F32, s) for k, s in shapes.items()}
    state["tied"] = state["head"]
    swapped = [Transpose(state[e], (1, 0)) for e in ("e0", "e1")]
    gates = stack(swapped)  # [2, 4, 6]: even columns are gates, odd ones are ups
    outputs = {
        "q": Slice(state["qkv"], (range(4), range(4))),
        "kv": Reshape(Slice(state["qkv"], (range(4, 12), range(4))), (2, 4, 4)),
        "gate": Slice(gates, (range(2), range(4), range(0, 6, 2))),
        "up": Slice(gates, (range(2), range(4), range(1, 6, 2))),
        "norm": Apply(
            "add", lambda x: x + 1, (state["norm"],), F32, (4,), inverse=lambda y: y - 1
        ),
        "A": Apply(
            "exp", mx.exp, (state["a_log"],), F32, (3,), inverse=torch.log, forward=torch.exp
        ),
        "embed": state["head"],
        "scale": state["scale"],
    }  # fmt: skip
    calls = []
    read = rows_from(outputs, tensors, calls)
    restored = {r.name: r for r in restore_state(outputs, read, state, block_bytes=48)}
    assert list(restored) == list(state)
    for name in ("qkv", "e0", "e1", "head", "scale"):
        assert restored[name].covered is None
        assert restored[name].values.dtype == np.float32
        assert np.array_equal(restored[name].values, tensors[name]), name
    assert np.array_equal(restored["tied"].values, tensors["head"])
    for name in ("norm", "a_log"):
        np.testing.assert_allclose(restored[name].values, tensors[name], rtol=1e-6, atol=1e-6)
    assert restored["unused"].values is None
    assert restored["unused"].reason == "no output holds it"
    # Blocks that hold nothing of a tensor are not read for it: one expert is one row of a stack.
    assert [c for c in calls if c[0] == "up"] == [("up", 0, 1), ("up", 1, 2)]


@pytest.mark.parametrize("zero", [False, True])
def test_factors_of_single_rows_are_divided_out_block_by_block(zero):
    factors = np.array([0.5, 3.0, 0.0 if zero else 7.0, 2.0, 1.5], np.float32)
    tensors = {"w": np.arange(1, 21, dtype=np.float32).reshape(5, 4)}
    state = {"w": Source("w", F32, (5, 4))}

    def sanitize(weights):
        return {"w": weights["w"] * (2.0 * mx.array(factors)[:, None])}

    outputs = trace_call(sanitize, state)
    read = rows_from(outputs, tensors)
    (restored,) = restore_state(outputs, read, state, block_bytes=32)
    if zero:
        assert restored.values is None
        assert restored.reason == "w: multiply has no numeric inverse"
    else:
        np.testing.assert_allclose(restored.values, tensors["w"], rtol=1e-6)


def test_factors_above_a_movement_are_not_divided_out_in_the_wrong_order():
    factors = mx.array(np.arange(1, 5, dtype=np.float32))
    tensors = {"w": np.arange(1, 17, dtype=np.float32).reshape(4, 4)}
    state = {"w": Source("w", F32, (4, 4))}
    outputs = trace_call(lambda weights: {"w": weights["w"].T * factors}, state)
    (restored,) = restore_state(outputs, rows_from(outputs, tensors), state)
    assert restored.values is None


def test_elements_that_no_output_holds_are_reported():
    state = {"w": Source("w", F32, (4, 2)), "m": Source("m", F32, (2,))}
    tensors = {"w": np.arange(8, dtype=np.float32).reshape(4, 2), "m": np.ones(2, np.float32)}
    outputs = {
        "part": Slice(state["w"], (range(1, 3), range(2))),
        "mixed": Apply("multiply", lambda a, b: a * b, (state["m"], state["m"]), F32, (2,)),
    }
    restored = list(restore_state(outputs, rows_from(outputs, tensors), state))
    assert restored[0].covered.tolist() == [[False] * 2, [True] * 2, [True] * 2, [False] * 2]
    assert np.array_equal(restored[0].values[1:3], tensors["w"][1:3])
    assert restored[1].values is None
    assert restored[1].reason == "mixed: multiply joins several tensors"
