"""What a port does to arrays, done to symbols, must give the same arrays."""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx
import numpy as np
import pytest

from torch2mlx.architectures.tracing import Traced, trace_call
from torch2mlx.dtypes import DTYPES, from_mx
from torch2mlx.errors import UnsupportedError
from torch2mlx.planning.expressions import Source
from torch2mlx.planning.regions import full

X = mx.random.normal((4, 6, 8), key=mx.random.key(1)).astype(mx.bfloat16)
Y = mx.random.normal((4, 6, 8), key=mx.random.key(2)).astype(mx.bfloat16)
CODES = (mx.random.normal((16, 8), key=mx.random.key(3)) * 40).astype(mx.uint8)


class Reader:
    arrays: ClassVar = {"x": from_mx(X), "y": from_mx(Y), "codes": from_mx(CODES)}

    def read(self, name, start=0, stop=None):
        return self.arrays[name][start:stop].copy()

    def read_flat(self, name, start, stop):
        return self.arrays[name].reshape(-1)[start:stop].copy()


STATE = {
    "x": Source("x", DTYPES["BF16"], X.shape),
    "y": Source("y", DTYPES["BF16"], Y.shape),
    "codes": Source("codes", DTYPES["U8"], CODES.shape),
}


def block_scaled(w):
    weight = mx.from_fp8(w["codes"], dtype=mx.bfloat16)
    weight = mx.pad(weight, ((0, 0), (0, 2))).reshape(4, 4, 5, 2)
    weight = (weight * w["x"][:, 0, None, :1, None].astype(mx.float32)).reshape(16, 10)
    return weight[:, :8].astype(mx.bfloat16)


CASES = {
    "transpose": lambda w: w["x"].T,
    "transpose axes": lambda w: w["x"].transpose(1, 0, 2),
    "swapaxes": lambda w: mx.swapaxes(w["x"], -1, 0),
    "moveaxis": lambda w: w["x"].moveaxis(2, 0),
    "reshape": lambda w: w["x"].reshape(8, -1, 2),
    "flatten": lambda w: w["x"].flatten(-2, -1),
    "squeeze": lambda w: w["x"][:1].squeeze(0),
    "expand dims": lambda w: mx.expand_dims(w["x"], (0, -1)),
    "index": lambda w: w["x"][1],
    "negative index": lambda w: w["x"][-1, ..., -1],
    "ellipsis": lambda w: w["x"][..., 3:5],
    "strided": lambda w: w["x"][:, ::2, 1::3],
    "new axis": lambda w: w["x"][:, None],
    "split": lambda w: mx.split(w["x"], 3, axis=1)[2],
    "split at": lambda w: w["x"].split([1, 5], axis=-1)[1],
    "stack": lambda w: mx.stack([w["x"], w["y"]], axis=1),
    "concatenate": lambda w: mx.concatenate([w["x"], w["y"]], axis=-1),
    "contiguous": lambda w: mx.contiguous(w["x"].swapaxes(0, 1)),
    "add": lambda w: w["x"] + 1.0,
    "right add": lambda w: 1 + w["x"],
    "exp": lambda w: -mx.exp(w["x"].astype(mx.float32)),
    "two tensors": lambda w: w["x"] * w["y"][:, :1],
    "astype": lambda w: w["x"].astype(mx.float16),
    "view": lambda w: w["x"].view(mx.uint32),
    "unknown function": lambda w: mx.cumsum(w["x"].astype(mx.float32), axis=1),
    "norm": lambda w: w["x"] / mx.linalg.norm(w["x"].astype(mx.float32), axis=-1, keepdims=True),
    "constant": lambda w: mx.ones((2, 3)),
    "block-scaled fp8": block_scaled,
}


@pytest.fixture
def port(monkeypatch):
    """A module in which `mx` is replaced, as in a port."""
    import sys

    monkeypatch.setitem(sys.modules, "mlx_lm.models.case", sys.modules[__name__])


@pytest.mark.parametrize("case", CASES)
def test_symbols_give_what_arrays_give(case, port):
    expected = CASES[case]({"x": X, "y": Y, "codes": CODES})
    (expr,) = trace_call(lambda w: {"out": CASES[case](w)}, STATE).values()
    assert expr.shape == expected.shape
    assert expr.dtype.mx_name == str(expected.dtype).removeprefix("mlx.core.")
    found = expr.read(full(expr.shape), Reader())
    assert np.array_equal(np.ascontiguousarray(found), from_mx(expected))
    part = tuple(range(n // 2, n) for n in expr.shape)
    corner = tuple(slice(r.start, r.stop) for r in part)
    assert np.array_equal(expr.read(part, Reader()), from_mx(expected)[corner])


def test_decisions_on_values_are_refused(port):
    with pytest.raises(UnsupportedError, match="depends on tensor values"):
        trace_call(lambda w: {"x": w["x"]} if mx.any(w["x"] > 0).item() else {}, STATE)


def test_mlx_is_itself_again_afterwards(port):
    with pytest.raises(ZeroDivisionError):
        trace_call(lambda w: {"x": 1 / 0}, STATE)
    import sys

    assert sys.modules[__name__].mx is mx
    assert isinstance(mx.stack([X]), mx.array)


def test_a_traced_tensor_counts_as_an_array_for_the_port(port):
    assert trace_call(lambda w: {"x": w["x"]} if isinstance(w["x"], mx.array) else {}, STATE)
    assert not isinstance(X, Traced)
