from __future__ import annotations

import hashlib
import json

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from torch2mlx.dtypes import DTYPES, dtype_from_mx
from torch2mlx.errors import SourceError
from torch2mlx.planning.expressions import Bits, Concat, Reshape, Slice, Source, Transpose, stack
from torch2mlx.planning.functions import Apply, Whole, cast
from torch2mlx.planning.plan import Output
from torch2mlx.planning.shards import TensorSpec
from torch2mlx.quantization.scheme import Scheme
from torch2mlx.sources.base import Packed
from torch2mlx.sources.safetensors import SafetensorsSource
from torch2mlx.verification.audit import audit, check_tied

F32, BF16, F16, U32, F8 = (DTYPES[n] for n in ("F32", "BF16", "F16", "U32", "F8_E4M3"))
PARTS = ("weight", "scales", "biases")


class Folder:
    """A PyTorch checkpoint and the MLX files that a test writes for it."""

    def __init__(self, path, tensors):
        save_file(tensors, path / "source.safetensors")
        self.path = path
        self.reader = SafetensorsSource([path / "source.safetensors"])
        self.state = {n: Source(n, i.dtype, i.shape) for n, i in self.reader.tensors.items()}
        self.written = {}
        self.outputs = []

    def add(self, name, expr, array, scheme=None, packed=None):
        """An output and what is written for it: one array, or the parts of a quantized one."""
        parts = {name: array}
        if scheme:
            module = name.removesuffix("weight")
            parts = {module + part: a for part, a in zip(PARTS, array, strict=False)}
        specs = tuple(TensorSpec(n, dtype_from_mx(a.dtype), a.shape) for n, a in parts.items())
        self.written.update(parts)
        self.outputs.append(Output(name, expr, scheme, packed, specs))

    def audit(self, **options):
        mx.save_safetensors(str(self.path / "model.safetensors"), self.written)
        return audit(self.outputs, [self.path / "model.safetensors"], self.reader, **options)


def rand(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * 0.1).to(dtype)


def to_mlx(tensor):
    if tensor.dtype == torch.bfloat16:
        return mx.array(tensor.view(torch.uint16).numpy()).view(mx.bfloat16)
    return mx.array(tensor.numpy())


def quantize(tensor, scheme):
    with mx.stream(mx.cpu):
        return [
            mx.contiguous(a)
            for a in mx.quantize(
                to_mlx(tensor), group_size=scheme.group_size, bits=scheme.bits, mode=scheme.mode
            )
        ]


@pytest.fixture
def folder(tmp_path):
    return Folder(
        tmp_path,
        {
            "a": rand(33, 24, dtype=torch.bfloat16),
            "b": rand(33, 24, dtype=torch.bfloat16, seed=1),
            "conv": rand(8, 3, 5, 5, seed=2),
            "norm": rand(24, seed=3),
            "one": rand(1, seed=4).reshape(()),
            "wide": rand(16, 256, dtype=torch.bfloat16, seed=5),
            "fp8": rand(4, 24, seed=6).to(torch.float8_e4m3fn),
        },
    )


def fill(folder):
    """Moved, cast and stacked tensors, as they should be."""
    s = folder.state
    a, b = (folder.reader.read(n) for n in "ab")
    folder.add(
        "stack.weight", stack([s["a"], s["b"]]), mx.array(np.stack([a, b])).view(mx.bfloat16)
    )
    folder.add(
        "half.weight",
        Slice(s["a"], (range(1, 33, 2), range(24))),
        mx.array(a[1::2]).view(mx.bfloat16),
    )
    conv = torch.from_numpy(folder.reader.read("conv")).permute(0, 2, 3, 1).contiguous()
    moved = Transpose(s["conv"], (0, 2, 3, 1))
    folder.add("conv.weight", cast(moved, BF16), to_mlx(conv.bfloat16()))
    one = mx.array(folder.reader.read("one"))
    folder.add("one", s["one"], one)
    folder.add("scalar", cast(s["one"], F16), one.astype(mx.float16))
    shifted = Apply(
        "add", lambda x: x + 1, (s["norm"],), F32, (24,),
        inverse=lambda y: y - 1, forward=lambda x: x + 1,
    )  # fmt: skip
    folder.add("norm.weight", shifted, mx.array(folder.reader.read("norm") + 1))
    fp8 = torch.from_numpy(folder.reader.read("fp8")).view(torch.float8_e4m3fn).bfloat16()
    folder.add("fp8.weight", cast(s["fp8"], BF16), to_mlx(fp8))


@pytest.mark.parametrize("block", [64, 1000, 1 << 20])
def test_right_tensors_pass_whatever_the_block(folder, block):
    fill(folder)
    seen = []
    report = folder.audit(block_bytes=block, progress=seen.append)
    assert report.passed, report.first_failure
    assert [c.name for c in report.checks] == [o.name for o in folder.outputs]
    kinds = " ".join(c.kind for c in report.checks)
    assert kinds == "exact exact cast exact cast function cast"
    assert all(c.max_error < 1e-6 and not c.recomputed for c in report.checks)
    data = (folder.path / "model.safetensors").read_bytes()
    assert report.hashes == {"model.safetensors": hashlib.sha256(data).hexdigest()}
    assert sum(seen) == len(data)
    assert report.nbytes == sum(a.nbytes for a in folder.written.values())
    assert json.loads(json.dumps(report.to_dict(tensors=True)))["counts"]["cast"] == 3


@pytest.mark.parametrize("block", [64, 1 << 20])
@pytest.mark.parametrize(
    "name", ["stack.weight", "half.weight", "conv.weight", "norm.weight", "one"]
)
def test_one_changed_bit_fails_and_is_named(folder, name, block):
    fill(folder)
    array = folder.written[name]
    size = array.dtype.size
    bits = np.array(array.view(mx.uint16 if size == 2 else mx.uint32))
    index = tuple(n // 2 for n in bits.shape)
    bits[index] ^= 1 << (4 if name != "norm.weight" else 12)
    folder.written[name] = mx.array(bits).view(array.dtype)
    report = folder.audit(block_bytes=block)
    assert [c.name for c in report.checks if not c.ok] == [name]
    failure = report.first_failure
    assert failure.max_error > 0
    assert name in failure.detail
    assert "expected" in failure.detail
    assert " 1 of " in failure.detail
    rows = failure.detail.split(": ")[0].split(" ")[-1]
    first, _, last = rows.partition("-")
    row = int(np.ravel_multi_index(index[:-1], bits.shape[:-1])) if bits.ndim > 1 else 0
    assert int(first) <= row <= int(last or first)


def test_a_failure_names_source_element_and_both_values(folder):
    expected = folder.reader.read("norm")
    found = expected.copy()
    found[7] = 3
    folder.add("norm.weight", folder.state["norm"], mx.array(found))
    assert folder.audit().first_failure.detail == (
        f"norm.weight, row 0: expected {expected[7]:.9g} as in norm[7], found 3; "
        "1 of 24 elements there are wrong"
    )


def test_swapped_experts_are_found(folder):
    a, b = (mx.array(folder.reader.read(n)).view(mx.bfloat16) for n in "ab")
    folder.add("experts", stack([folder.state["a"], folder.state["b"]]), mx.stack([b, a]))
    assert "rows 0-" in folder.audit().first_failure.detail


SCHEMES = [Scheme(2, 32), Scheme(4, 64), Scheme(6, 128), Scheme(8, 64)]
SCHEMES += [Scheme(4, 32, "mxfp4"), Scheme(4, 16, "nvfp4"), Scheme(8, 32, "mxfp8")]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_quantized_tensors_are_within_rounding_of_their_source(folder, scheme):
    wide = rand(16, 256, dtype=torch.bfloat16, seed=5)
    folder.add("w.weight", folder.state["wide"], quantize(wide, scheme), scheme)
    stacked = Reshape(Concat((folder.state["wide"],) * 2, 0), (4, 8, 256))
    twice = quantize(torch.cat([wide, wide]).reshape(4, 8, 256), scheme)
    folder.add("stacked.weight", stacked, twice, scheme)
    half = cast(folder.state["wide"], F16)
    folder.add("half.weight", half, quantize(wide.half(), scheme), scheme)
    for block in (1 << 12, 1 << 20):
        report = folder.audit(block_bytes=block)
        assert report.passed, report.first_failure
        assert {c.kind for c in report.checks} == {"quantized"}
        with mx.stream(mx.cpu):
            words, *scales = (folder.written[f"w.{p}"] for p in PARTS[: 2 + scheme.affine])
            if scheme.affine:  # MLX computes in the dtype of the scales
                scales = [part.astype(mx.float32) for part in scales]
            values = mx.dequantize(
                words, *scales, group_size=scheme.group_size, bits=scheme.bits, mode=scheme.mode,
                dtype=mx.float32,
            )  # fmt: skip
        error = np.array(values) - wide.float().numpy()
        rms = np.linalg.norm(error) / np.linalg.norm(wide.float().numpy())
        assert report.checks[0].rms == pytest.approx(rms, rel=1e-4)
        assert report.checks[1].nbytes == sum(
            folder.written[f"stacked.{p}"].nbytes for p in PARTS[: 2 + scheme.affine]
        )


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("part", ["weight", "scales"])
def test_a_damaged_quantized_tensor_fails(folder, scheme, part):
    folder.add(
        "w.weight",
        folder.state["wide"],
        quantize(rand(16, 256, dtype=torch.bfloat16, seed=5), scheme),
        scheme,
    )
    array = folder.written[f"w.{part}"]
    unsigned = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32}[array.dtype.size]
    bits = np.array(array.view(unsigned))
    # The upper bit of a code, or a scale twice as large or as small.
    top = 1 << (scheme.bits - 1) if part == "weight" else {1: 1 << 3, 2: 1 << 7}[array.dtype.size]
    bits[9, 1] ^= top
    if part == "scales" and scheme.mode in ("mxfp4", "mxfp8"):
        bits[9, 1] = bits[9, 1] ^ top ^ 3
    folder.written[f"w.{part}"] = mx.array(bits).view(array.dtype)
    report = folder.audit(block_bytes=1 << 14)
    assert not report.passed
    assert report.first_failure.name == "w.weight"
    # Values chosen on data have no such bound; their error is measured.
    measured = folder.audit(rounded=False)
    assert measured.checks[0].rms == pytest.approx(report.checks[0].rms)


@pytest.mark.parametrize("scheme", [Scheme(2, 64), Scheme(4, 64), Scheme(4, 32, "mxfp4")])
def test_values_chosen_on_data_must_be_near_their_own_row(folder, scheme):
    folder.add(
        "w.weight",
        folder.state["wide"],
        quantize(rand(16, 256, dtype=torch.bfloat16, seed=5), scheme),
        scheme,
    )
    assert folder.audit(rounded=False).passed
    for name in ("w.weight", "w.scales", "w.biases"):
        if name in folder.written:
            array = folder.written[name]
            order = mx.array([1, 0, *range(2, array.shape[0])])
            folder.written[name] = array[order]
    report = folder.audit(rounded=False)
    assert not report.passed
    assert "row 0" in report.first_failure.detail or "rows 0-" in report.first_failure.detail


def test_repacked_grids_must_equal_the_source_in_float32(tmp_path):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (8, 64))
    scales, biases = (rng.standard_normal((8, 2)).astype(np.float16) for _ in range(2))
    values = codes.reshape(8, 2, 32) * scales.astype(np.float32)[..., None]
    values += biases.astype(np.float32)[..., None]
    folder = Folder(tmp_path, {"w": torch.from_numpy(values.reshape(8, 64).astype(np.float32))})
    words = (codes.reshape(8, 8, 8).astype(np.uint32) << (4 * np.arange(8, dtype=np.uint32))).sum(
        -1
    )
    parts = [mx.array(words.astype(np.uint32)), mx.array(scales), mx.array(biases)]
    virtual = [
        Source(n, d, s) for n, d, s in (("c", U32, (8, 8)), ("s", F16, (8, 2)), ("b", F16, (8, 2)))
    ]
    folder.add(
        "w.weight", cast(folder.state["w"], BF16), parts, Scheme(4, 32), Packed(4, 32, *virtual)
    )
    report = folder.audit()
    assert report.passed, report.first_failure
    assert (report.checks[0].kind, report.checks[0].max_error) == ("repacked", 0.0)
    folder.written["w.biases"] = mx.array(biases * np.float16(1.001))
    assert "w.weight" in folder.audit().first_failure.detail


def test_what_has_no_way_back_is_recomputed_and_counted(folder):
    s = folder.state
    product = Apply("multiply", lambda x, y: x * y, (s["a"], s["b"]), BF16, (33, 24))
    ordered = Whole("sort", lambda x: mx.sort(x, axis=0), (s["norm"],), F32, (24,))
    log = Apply("log1p", mx.log1p, (s["norm"],), F32, (24,))  # no torch form given
    a, b = (mx.array(folder.reader.read(n)).view(mx.bfloat16) for n in "ab")
    norm = mx.array(folder.reader.read("norm"))
    with mx.stream(mx.cpu):
        folder.add("product", product, a * b)
        folder.add("sorted", ordered, mx.sort(norm))
        folder.add("log", log, mx.log1p(norm))
    folder.add("plain", s["norm"], norm)
    scheme = Scheme(8, 32)
    weight = Apply("multiply", lambda x, y: x * y, (s["wide"],) * 2, BF16, (16, 256))
    squared = rand(16, 256, dtype=torch.bfloat16, seed=5) ** 2
    folder.add("q.weight", weight, quantize(squared, scheme), scheme)
    report = folder.audit()
    assert report.passed, report.first_failure
    assert [c.recomputed for c in report.checks] == [True, True, True, False, True]
    assert report.recomputed == 4
    folder.written["sorted"] = norm
    assert folder.audit().first_failure.name == "sorted"


def test_missing_misshapen_and_unexpected_tensors_fail(folder):
    norm = mx.array(folder.reader.read("norm"))
    folder.add("gone", folder.state["norm"], norm)
    folder.add("short", folder.state["norm"], norm)
    folder.add("typed", folder.state["norm"], norm)
    del folder.written["gone"]
    folder.written |= {"short": norm[:5], "typed": norm.astype(mx.float16), "extra": norm}
    report = folder.audit()
    details = {c.name: c.detail for c in report.checks if not c.ok}
    assert details == {
        "gone": "gone: expected F32 [24], not in the files",
        "short": "short: expected F32 [24], model.safetensors has F32 [5]",
        "typed": "typed: expected F32 [24], model.safetensors has F16 [24]",
        "extra": "extra: not expected in the written files",
    }


def test_an_equal_width_view_is_compared_bit_by_bit(folder):
    expr = Bits(folder.state["norm"], U32)
    folder.add("bits", expr, mx.array(folder.reader.read("norm")).view(mx.uint32))
    assert folder.audit().checks[0].kind == "exact"


def test_a_truncated_file_is_a_source_error(folder):
    fill(folder)
    folder.audit()
    path = folder.path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(SourceError, match="truncated"):
        audit(folder.outputs, [path], folder.reader)


def test_tied_tensors_must_be_equal(folder):
    s = folder.state
    same = cast(s["a"], F32)
    assert check_tied("lm_head", s["a"], "embed", s["a"], folder.reader, block_bytes=64).ok
    assert check_tied("lm_head", same, "embed", s["a"], folder.reader).ok
    other = check_tied("lm_head", s["b"], "embed", s["a"], folder.reader, block_bytes=64)
    assert not other.ok
    assert "lm_head: differs from embed in row 0" in other.detail
    assert "tie_word_embeddings" in other.detail
    shape = check_tied("lm_head", s["norm"], "embed", s["a"], folder.reader)
    assert "is [24], embed is [33, 24]" in shape.detail
