"""Streaming: bytes, memory, and what stops a run."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from torch2mlx.conversion import executor
from torch2mlx.conversion.blocks import row_regions
from torch2mlx.conversion.executor import execute
from torch2mlx.dtypes import DTYPES, from_mx, to_mx
from torch2mlx.errors import DestinationError, NumericError, OptionError
from torch2mlx.planning.expressions import Source, Transpose, stack
from torch2mlx.planning.functions import cast
from torch2mlx.planning.plan import Output
from torch2mlx.planning.shards import TensorSpec, plan_shards
from torch2mlx.quantization.scheme import Scheme


class Memory:
    """Arrays by name, and the largest block that was asked for."""

    def __init__(self, **arrays):
        self.arrays = {name: from_mx(array) for name, array in arrays.items()}
        self.largest = 0

    def read(self, name, start=0, stop=None):
        array = self.arrays[name]
        block = array[start:stop].copy() if array.ndim else array.copy()
        self.largest = max(self.largest, block.nbytes)
        return block

    def read_flat(self, name, start, stop):
        block = self.arrays[name].reshape(-1)[start:stop].copy()
        self.largest = max(self.largest, block.nbytes)
        return block

    def source(self, name, dtype):
        return Source(name, DTYPES[dtype], self.arrays[name].shape)


def plan_of(*outputs, limit=10**9):
    return SimpleNamespace(
        outputs=outputs, shards=tuple(plan_shards((o.specs for o in outputs), limit))
    )


def plain(name, expr):
    return Output(name, expr, None, None, (TensorSpec(name, expr.dtype, expr.shape),))


def quantized(name, expr, scheme):
    module = name.removesuffix("weight")
    specs = tuple(
        TensorSpec(module + part, dtype, shape)
        for part, (dtype, shape) in scheme.layout(expr.shape, expr.dtype).items()
    )
    return Output(name, expr, scheme, None, specs)


def normal(*shape, dtype=mx.bfloat16):
    return mx.random.normal(shape, key=mx.random.key(sum(shape))).astype(dtype)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(executor, "_MAX_BLOCK", 4096)


def test_a_stack_of_transposed_experts_is_written_block_by_block(tmp_path, small_blocks):
    experts = {f"e{i}": normal(96, 64) for i in range(5)}
    memory = Memory(**experts)
    expr = stack([Transpose(memory.source(name, "BF16"), (1, 0)) for name in experts])
    execute(plan_of(plain("w", expr)), memory, tmp_path)
    written = mx.load(str(tmp_path / "model.safetensors"))["w"]
    assert mx.array_equal(written, mx.stack([e.T for e in experts.values()]))


@pytest.mark.parametrize("limit", [10**9, 6000])
def test_quantized_blocks_equal_the_whole_tensor(tmp_path, small_blocks, limit):
    weight = normal(3, 50, 128)
    memory = Memory(w=weight)
    plan = plan_of(
        quantized("m.weight", memory.source("w", "BF16"), Scheme(4, 64)), limit=max(limit, 11_000)
    )
    files = execute(plan, memory, tmp_path)
    written = {k: v for f in files for k, v in mx.load(str(f)).items()}
    expected = mx.quantize(weight, group_size=64, bits=4, stream=mx.cpu)
    for part, array in zip(("weight", "scales", "biases"), expected, strict=True):
        assert mx.array_equal(written[f"m.{part}"], array), part
    assert memory.largest <= 4096


def test_progress_adds_up_to_the_data(tmp_path, small_blocks):
    memory = Memory(a=normal(300, 64), b=normal(7))
    seen = []
    plan = plan_of(plain("a", memory.source("a", "BF16")), plain("b", memory.source("b", "BF16")))
    execute(plan, memory, tmp_path, progress=seen.append)
    assert sum(seen) == 300 * 64 * 2 + 7 * 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_a_bad_value_is_found_wherever_it_is(tmp_path, small_blocks, bad, dtype):
    weight = np.array(normal(200, 64, dtype=mx.float32))
    weight[137, 11] = bad
    memory = Memory(w=mx.array(weight).astype(getattr(mx, DTYPES[dtype].mx_name)))
    plan = plan_of(quantized("m.weight", memory.source("w", dtype), Scheme(4, 64)))
    with pytest.raises(NumericError, match=r"m\.weight \(from 'w'\).*NaN or Inf"):
        execute(plan, memory, tmp_path)


def test_overflow_is_told_from_a_bad_source(tmp_path):
    weight = np.ones((8, 64), np.float32)
    weight[3, 3] = 70000.0
    memory = Memory(w=mx.array(weight))
    plan = plan_of(plain("m.weight", cast(memory.source("w", "F32"), DTYPES["F16"])))
    with pytest.raises(NumericError, match=r"overflows float16; use --dtype bfloat16"):
        execute(plan, memory, tmp_path)


@pytest.mark.parametrize("name", ["F8_E4M3", "F8_E5M2"])
def test_fp8_is_decoded_exactly_as_torch_does(tmp_path, name):
    torch = pytest.importorskip("torch")
    bits = np.arange(256, dtype=np.uint8)
    expected = torch.from_numpy(bits.copy()).view(getattr(torch, DTYPES[name].torch_name)).float()
    finite = torch.isfinite(expected).numpy()
    memory = SimpleNamespace(read=lambda _n, start=0, stop=None: bits[finite][start:stop].copy())
    expr = cast(Source("w", DTYPES[name], (int(finite.sum()),)), DTYPES["BF16"])
    execute(plan_of(plain("w", expr)), memory, tmp_path)
    written = mx.load(str(tmp_path / "model.safetensors"))["w"].astype(mx.float32)
    assert np.array_equal(np.array(written), expected.numpy()[finite])


def test_float64_is_rounded_once(tmp_path):
    values = np.random.default_rng(0).standard_normal((40, 8))
    memory = SimpleNamespace(read=lambda _n, start=0, stop=None: values[start:stop].copy())
    expr = cast(Source("w", DTYPES["F64"], values.shape), DTYPES["F32"])
    execute(plan_of(plain("w", expr)), memory, tmp_path)
    written = mx.load(str(tmp_path / "model.safetensors"))["w"]
    assert np.array_equal(np.array(written), values.astype(np.float32))


def test_a_full_disk_is_said_so(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    memory = Memory(w=normal(4, 4))
    with pytest.raises(DestinationError, match="disk is full"):
        execute(plan_of(plain("w", memory.source("w", "BF16"))), memory, tmp_path)


def test_a_limit_too_small_to_work_in_is_refused(tmp_path):
    with pytest.raises(OptionError, match="--memory-limit"):
        execute(plan_of(), Memory(), tmp_path, memory_limit=10**6)


@pytest.mark.parametrize("shape", [(), (5,), (7, 3), (4, 6, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("block", [1, 40, 10_000])
def test_regions_cover_each_row_once_in_order(shape, block):
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    row = 4 * (shape[-1] if shape else 1)
    seen = []
    for before, region in row_regions(shape, row, block):
        part = values[tuple(slice(r.start, r.stop) for r in region)]
        if len(shape) > 1:
            assert before == len(seen) // shape[-1]
        seen.extend(part.reshape(-1).tolist())
    assert seen == list(range(values.size))


def test_bit_views_survive_the_way_through_mlx():
    bits = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(from_mx(to_mx(bits, DTYPES["BF16"])), bits)
