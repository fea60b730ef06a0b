"""Checkpoints of bitsandbytes: NF4 and FP4 (a table of 16 values) and LLM.int8().

4 bits: `weight` U8 [n / 2, 1] over the row-major elements, the first in the high half;
`weight.absmax` a block, itself quantized where `weight.nested_*` are there; `weight.quant_map` the
table; `weight.quant_state.bitsandbytes__nf4` a JSON object in bytes.  8 bits: `weight` I8 [out, in]
and `SCB` [out], the largest magnitude of each row, which stands for 127.
(https://github.com/bitsandbytes-foundation/bitsandbytes, functional.py)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from torch2mlx.dtypes import DTYPES
from torch2mlx.planning.computed import Computed, as_floats
from torch2mlx.planning.expressions import Expr, Reader
from torch2mlx.planning.regions import Region, full
from torch2mlx.sources.packed.weight import PackedWeight, Unpacked

__all__ = ["unpack_bitsandbytes"]

Array = np.ndarray[Any, Any]

_STATES = {
    "weight.quant_state.bitsandbytes__nf4": "NF4",
    "weight.quant_state.bitsandbytes__fp4": "FP4",
}
_LARGEST = 1 << 20  # bytes of a description, which has some 200
_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_PER_CODE = np.float32(1 / 127)


def unpack_bitsandbytes(
    state: Mapping[str, Expr], settings: Mapping[str, Any], reader: Reader
) -> Unpacked:
    """The weights of such a checkpoint; no format of MLX has their values.

    Args:
        state: stored tensors.
        settings: `quantization_config`; the tensors say all that is needed.
        reader: of the stored tensors; the shapes are in JSON objects among them.
    """
    found = Unpacked()
    kinds = set()
    for name, expr in state.items():
        for suffix, kind in _STATES.items():
            if name.endswith(f".{suffix}"):
                module = name.removesuffix(f".{suffix}")
                kinds.add(kind)
                problem = _four_bits(found, module, name, state, reader)
                if problem:
                    found.problems.append(f"{module}.weight: {problem}")
        if name.endswith(".SCB"):
            kinds.add("int8")
            problem = _eight_bits(found, name.removesuffix(".SCB"), expr, state)
            if problem:
                found.problems.append(f"{name}: {problem}")
    found.notes.append(
        f"bitsandbytes, {', '.join(sorted(kinds)) or 'nothing packed'}: {len(found.weights)} "
        "weights, of values that no format of MLX has: they are dequantized"
    )
    return found


def _four_bits(
    found: Unpacked, module: str, described: str, state: Mapping[str, Expr], reader: Reader
) -> str:
    name = f"{module}.weight"
    text = state[described]
    found.consumed.update((name, described))
    parts = {p: state.get(f"{name}.{p}") for p in _PARTS}
    found.consumed.update(f"{name}.{p}" for p, expr in parts.items() if expr is not None)
    if text.nbytes > _LARGEST:
        return f"{described} has {text.nbytes:,} bytes; at most {_LARGEST:,} are expected"
    try:
        settings = json.loads(text.read(full(text.shape), reader).tobytes())
        shape, block = tuple(map(int, settings["shape"])), int(settings["blocksize"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return f"{described} is no description of it: {error!r}"
    if min(shape, default=0) < 1 or block < 1:
        return f"{described}: shape {list(shape)} in blocks of {block}"
    codes, absmax, table = state.get(name), parts["absmax"], parts["quant_map"]
    if codes is None or absmax is None or table is None:
        return "its codes, absmax or quant_map are missing"
    count = prod(shape)
    if codes.size * 2 != count + count % 2 or absmax.size != -(-count // block):
        return f"{codes.size} bytes and {absmax.size} blocks for {list(shape)} in blocks of {block}"
    if codes.dtype.name != "U8" or not _is_flat(codes) or not _is_flat(absmax) or table.size != 16:
        return (
            f"{codes.dtype} {list(codes.shape)}, absmax {list(absmax.shape)} and quant_map "
            f"{list(table.shape)}: expected U8 [bytes, 1], [blocks] and [16]"
        )
    nested = None
    if parts["nested_absmax"] is not None and parts["nested_quant_map"] is not None:
        nested = _Nested(
            parts["nested_absmax"],
            parts["nested_quant_map"],
            int(settings.get("nested_blocksize", 256)),
            float(settings.get("nested_offset", 0.0)),
        )
        count = -(-absmax.size // max(1, nested.block))
        if (absmax.dtype.name, nested.table.size, nested.absmax.size) != ("U8", 256, count):
            return (
                f"absmax {absmax.dtype} {list(absmax.shape)} with nested_quant_map "
                f"{list(nested.table.shape)} and nested_absmax {list(nested.absmax.shape)}: "
                f"expected U8, [256] and [{count}] in blocks of {nested.block}"
            )
    elif not absmax.dtype.floating:
        return "absmax is quantized, and nested_absmax or nested_quant_map is missing"
    function = _FourBits(codes, absmax, table, shape, block, nested)
    operands = tuple(e for e in (codes, *parts.values()) if e is not None)
    how = f"decode by table, blocks of {block}"
    found.weights[name] = PackedWeight(
        Computed(name, how, function, operands, DTYPES["F32"], shape)
    )
    return ""


@dataclass(frozen=True)
class _Nested:
    """How the scales of blocks are quantized themselves."""

    absmax: Expr
    table: Expr
    block: int
    offset: float


@dataclass(frozen=True)
class _FourBits:
    """Values of a flat array of codes, by rows of the tensor."""

    codes: Expr
    absmax: Expr
    table: Expr
    shape: tuple[int, ...]
    block: int
    nested: _Nested | None

    def __call__(self, region: Region, reader: Reader) -> Array:
        inner = prod(self.shape[1:])
        start, stop = region[0].start * inner, region[0].stop * inner
        octets = _flat(self.codes, start // 2, -(-stop // 2), reader)
        both = np.stack([octets >> 4, octets & 15], axis=-1).reshape(-1)
        codes = both[start % 2 : start % 2 + stop - start]
        values = _numbers(self.table, reader)[codes]
        blocks = np.arange(start, stop) // self.block
        values *= self._scales(int(blocks[0]), int(blocks[-1]) + 1, reader)[blocks - blocks[0]]
        whole = values.reshape(len(region[0]), *self.shape[1:])
        return whole[(slice(None), *(slice(r.start, r.stop) for r in region[1:]))]

    def _scales(self, start: int, stop: int, reader: Reader) -> Array:
        found = _flat(self.absmax, start, stop, reader)
        if self.nested is None:
            return as_floats(found, self.absmax.dtype)
        blocks = np.arange(start, stop) // self.nested.block
        scales = _numbers(self.nested.absmax, reader)[blocks]
        return _numbers(self.nested.table, reader)[found] * scales + np.float32(self.nested.offset)


def _is_flat(expr: Expr) -> bool:
    return expr.shape[:1] == (expr.size,)


def _flat(expr: Expr, start: int, stop: int, reader: Reader) -> Array:
    """Elements of a tensor with one axis longer than 1, which is the first."""
    rest = tuple(range(n) for n in expr.shape[1:])
    return expr.read((range(start, stop), *rest), reader).reshape(-1)


def _numbers(expr: Expr, reader: Reader) -> Array:
    return as_floats(expr.read(full(expr.shape), reader), expr.dtype).reshape(-1)


def _eight_bits(found: Unpacked, module: str, largest: Expr, state: Mapping[str, Expr]) -> str:
    name = f"{module}.weight"
    codes = state.get(name)
    found.consumed.update((name, f"{module}.SCB", f"{module}.weight_format"))
    if codes is None or codes.dtype.name != "I8" or len(codes.shape) != 2:
        return "expected an I8 weight"
    if largest.shape != codes.shape[:1]:
        return f"{list(largest.shape)} for a weight of {codes.shape[0]} rows"

    def function(region: Region, reader: Reader) -> Array:
        values = codes.read(region, reader).astype(np.float32)
        values *= as_floats(largest.read(region[:1], reader), largest.dtype)[:, None]
        values *= _PER_CODE
        return values

    how = "decode int8 rows"
    found.weights[name] = PackedWeight(
        Computed(name, how, function, (codes, largest), DTYPES["F32"], codes.shape)
    )
    return ""
