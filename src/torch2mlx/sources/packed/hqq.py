"""Checkpoints of HQQ: groups with a zero point that need be no integer.

A linear layer is `W_q`, `scale` and `zero`, and its settings as tensors: `nbits`, `group_size`,
`shape`, `axis`, `packing` and `compute_dtype` (texts as character codes).  The weight in row-major
order is a matrix [groups, group_size] (axis 1) or [group_size, groups] (axis 0), whose rows are cut
into as many equal parts as a stored word has codes; the first part lies in the highest bits.
(https://github.com/mobiusml/hqq, core/quantize.py and bitpack.py)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from torch2mlx.dtypes import DTYPES, DType
from torch2mlx.planning.computed import Computed, as_floats
from torch2mlx.planning.expressions import Expr, Reader
from torch2mlx.planning.regions import Region, full
from torch2mlx.sources.base import Packed
from torch2mlx.sources.packed.integers import Integers, repacked_words
from torch2mlx.sources.packed.weight import PackedWeight, Unpacked

__all__ = ["unpack_hqq"]

Array = np.ndarray[Any, Any]

# dtype of W_q, codes of a word, bits of each.
_PACKINGS = {
    "8bit_u8": ("U8", 1, 8), "4bit_u8": ("U8", 2, 4), "3bit_32": ("I32", 10, 3),
    "2bit_u8": ("U8", 4, 2), "1bit_u8": ("U8", 8, 1),
}  # fmt: skip
_NUMBERS = ("nbits", "group_size", "axis", "quant_scale", "quant_zero", "view_as_float")
_TEXTS = ("packing", "compute_dtype")
_TENSORS = ("W_q", "scale", "zero", "shape")
_UNUSED = (
    "unpack_view_dtype", "offload_meta", "encoded_state_dict", "stores_quant_config",
    "channel_wise", "optimize", "round_zero",
)  # fmt: skip
_DTYPES = {"torch.float16": "F16", "torch.bfloat16": "BF16", "torch.float32": "F32"}
_LARGEST = 64  # elements of a setting


def unpack_hqq(state: Mapping[str, Expr], settings: Mapping[str, Any], reader: Reader) -> Unpacked:
    """The weights of such a checkpoint.

    Args:
        state: stored tensors.
        settings: `quantization_config`; the tensors say all that is needed.
        reader: of the stored tensors.
    """
    found = Unpacked()
    for name in state:
        module, _, leaf = name.rpartition(".")
        if leaf == "W_q":
            try:
                problem = _module(found, module, state, reader)
            except (ArithmeticError, LookupError, TypeError, ValueError) as error:
                problem = f"settings that HQQ does not write ({type(error).__name__}: {error})"
            if problem:
                found.problems.append(f"{module}: {problem}")
    found.notes.append(f"HQQ: {len(found.weights)} weights")
    return found


def _module(found: Unpacked, module: str, state: Mapping[str, Expr], reader: Reader) -> str:
    """Add one weight; what is wrong with it otherwise."""
    leaves = (*_TENSORS, *_NUMBERS, *_TEXTS, *_UNUSED)
    parts = {leaf: e for leaf in leaves if (e := state.get(f"{module}.{leaf}")) is not None}
    found.consumed.update(f"{module}.{leaf}" for leaf in parts)
    missing = [n for n in (*_TENSORS, *_NUMBERS[:3], *_TEXTS) if n not in parts]
    if missing:
        return f"{', '.join(missing)} missing beside W_q"
    large = [n for n, e in parts.items() if n not in _TENSORS[:3] and e.size > _LARGEST]
    if large:
        return f"{large[0]} has {parts[large[0]].size} elements"
    numbers = {n: int(_read(parts[n], reader)[0]) for n in _NUMBERS if n in parts}
    packing, computes = (
        "".join(map(chr, _read(parts[n], reader).astype(int).tolist())) for n in _TEXTS
    )
    shape = tuple(int(n) for n in _read(parts["shape"], reader))
    bits, group, axis = (numbers[n] for n in _NUMBERS[:3])
    if packing not in _PACKINGS or computes not in _DTYPES or _PACKINGS[packing][2] != bits:
        return f"{bits} bits packed as {packing!r}, computed in {computes!r}"
    if any(numbers.get(n) for n in _NUMBERS[3:]):
        return "scales or zero points that are quantized themselves, or codes seen as floats"
    if len(shape) != 2 or min(shape) < 1 or group < 1 or prod(shape) % group or axis not in (0, 1):
        return f"shape {list(shape)} in groups of {group} along axis {axis}"
    stored, lanes, _ = _PACKINGS[packing]
    codes, scale, zero = (parts[n] for n in _TENSORS[:3])
    count = prod(shape) // group
    rows, columns = (count, group) if axis == 1 else (group, count)
    floating = scale.dtype.floating and zero.dtype.floating
    if codes.dtype.name != stored or codes.shape != (-(-rows // lanes), columns) or not floating:
        return (
            f"W_q {codes.dtype} {list(codes.shape)} for {list(shape)} in groups of {group} along "
            f"axis {axis}: expected {stored} {[-(-rows // lanes), columns]}"
        )
    if scale.size != count or zero.size != count:
        return f"scale {list(scale.shape)} and zero {list(zero.shape)} for {count} groups"
    name = f"{module}.weight"
    matrix = _Matrix(
        name, shape, codes, scale, zero, columns, lanes, bits, axis, DTYPES[_DTYPES[computes]]
    )
    how = f"decode {bits} bits, groups of {group} along axis {axis}, zero points of {computes}"
    value = Computed(name, how, matrix, (codes, scale, zero), DTYPES["F32"], shape)
    found.weights[name] = PackedWeight(value, matrix.scale_dtype, matrix.grid)
    return ""


def _read(expr: Expr, reader: Reader) -> Array:
    return expr.read(full(expr.shape), reader).reshape(-1)


@dataclass(frozen=True)
class _Matrix:
    """A weight as HQQ stores it.

    Attributes:
        name: of the weight.
        shape: [out, in].
        codes: words [ceil(rows / lanes), columns].
        scale, zero: a number a group.
        columns: of the matrix that holds the weight in row-major order.
        lanes: codes of a word.
        bits: of a code.
        axis: 1: rows of that matrix are groups; 0: its columns.
        dtype: in which HQQ takes zero points away.
    """

    name: str
    shape: tuple[int, ...]
    codes: Expr
    scale: Expr
    zero: Expr
    columns: int
    lanes: int
    bits: int
    axis: int
    dtype: DType

    def __call__(self, region: Region, reader: Reader) -> Array:
        """float32 values of a region; rounded to `dtype` they are those of HQQ."""
        rows, columns = region
        codes = self.read_codes(rows, range(self.shape[1]), reader)[:, columns.start : columns.stop]
        at = np.arange(rows.start, rows.stop)[:, None] * self.shape[1]
        at = at + np.arange(columns.start, columns.stop)
        groups = at // self.columns if self.axis == 1 else at % self.columns
        first, stop = int(groups.min()), int(groups.max()) + 1
        scale, zero = (self._of_groups(x, first, stop, reader) for x in (self.scale, self.zero))
        values = _rounded(codes.astype(np.float32) - zero[groups - first], self.dtype)
        values *= scale[groups - first]
        return values

    def read_codes(self, rows: range, columns: range, reader: Reader) -> Array:
        """uint8 codes of some rows and columns of the weight."""
        start, stop = rows.start * self.shape[1], rows.stop * self.shape[1]
        low, high = start // self.columns, -(-stop // self.columns)
        step = self.codes.shape[0]
        parts = []
        for lane in range(low // step, (high - 1) // step + 1):
            inside = range(max(low - lane * step, 0), min(high - lane * step, step))
            words = self.codes.read((inside, range(self.columns)), reader)
            words = words.view(np.uint32) if words.dtype == np.int32 else words
            shift = (self.lanes - 1 - lane) * self.bits
            parts.append(((words >> shift) & (2**self.bits - 1)).astype(np.uint8))
        flat = np.concatenate(parts).reshape(-1)[start - low * self.columns :][: stop - start]
        return flat.reshape(len(rows), -1)[:, columns.start : columns.stop]

    def _of_groups(self, numbers: Expr, start: int, stop: int, reader: Reader) -> Array:
        axes = [range(n) for n in numbers.shape]
        axes[0 if self.axis == 1 else -1] = range(start, stop)
        found = as_floats(numbers.read(tuple(axes), reader), numbers.dtype)
        return found.astype(np.float32).reshape(-1)

    @property
    def _group(self) -> int | None:
        """Length of the groups, where they lie within rows of the weight."""
        whole = self.axis == 1 and self.shape[1] % self.columns == 0 and self.shape[1] % 32 == 0
        return self.columns if whole else None

    def _integers(self) -> Integers:
        """The same with zero points taken for integers."""
        group = self._group
        assert group is not None
        grid = (self.shape[0], self.shape[1] // group)

        def numbers(source: Expr, region: Region, reader: Reader) -> Array:
            rows, columns = region
            first, stop = rows.start * grid[1], rows.stop * grid[1]
            part = source.read((range(first, stop), range(1)), reader).reshape(len(rows), -1)
            return part[:, columns.start : columns.stop]

        def zeros(region: Region, reader: Reader) -> Array:
            found = as_floats(numbers(self.zero, region, reader), self.zero.dtype)
            return found.astype(np.int32)

        def scales(region: Region, reader: Reader) -> Array:
            return numbers(self.scale, region, reader)

        shape = (self.shape[0], self.shape[1])
        how = "codes along rows"
        return Integers(
            self.name,
            self.bits,
            group,
            shape[1],
            repacked_words(self.name, how, self.bits, shape, self.read_codes, self.codes),
            Computed(f"{self.name}#scale", how, scales, (self.scale,), self.scale.dtype, grid),
            Computed(f"{self.name}#zeros", how, zeros, (self.zero,), DTYPES["I32"], grid),
        )

    def scale_dtype(self, reader: Reader) -> DType | None:
        """The dtype that MLX's scales and biases need to be exact; None: it has no such grid."""
        if self._group is None:
            return None
        zero = self._of_groups(self.zero, 0, self.zero.size, reader)
        # Whole numbers among the codes: taking them away rounds nothing.
        if (zero != np.rint(zero)).any() or zero.min() < 0 or zero.max() >= 2**self.bits:
            return None
        return self._integers().scale_dtype(reader)

    def grid(self, dtype: DType) -> Packed:
        """The tensors of MLX's affine format."""
        return self._integers().grid(dtype)


def _rounded(values: Array, dtype: DType) -> Array:
    """float32 numbers at the nearest ones of a dtype."""
    if dtype.name == "BF16":
        words = np.ascontiguousarray(values).view(np.uint32)
        near = words + np.uint32(0x7FFF) + ((words >> np.uint32(16)) & np.uint32(1))
        return (near & np.uint32(0xFFFF0000)).view(np.float32)
    return values.astype(dtype.numpy).astype(np.float32)
