"""Checkpoints of torchao as safetensors files: tensor subclasses taken apart, named in the header.

`<module>._weight_qdata` and `_weight_scale` (and `_weight_zero_point`) are one weight, whose class,
bits and blocks are in the header's metadata as JSON, under the weight's name
(https://github.com/pytorch/ao, prototype/safetensors).

| class | qdata | value |
|---|---|---|
| Int8Tensor | I8 [out, in] | (qdata - zero point) * scale |
| IntxUnpackedToInt8Tensor | I8 [out, in], of fewer bits | the same |
| Float8Tensor | fp8 [out, in] | qdata * scale |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from torch2mlx.dtypes import DTYPES
from torch2mlx.errors import SourceError, UnsupportedError
from torch2mlx.planning.computed import Computed
from torch2mlx.planning.expressions import Expr, Reader
from torch2mlx.planning.regions import Region
from torch2mlx.sources.packed.floats import SmallFloats, float_weight
from torch2mlx.sources.packed.integers import Integers, integer_weight, repacked_words
from torch2mlx.sources.packed.scaled_floats import scale_grid
from torch2mlx.sources.packed.weight import Unpacked
from torch2mlx.sources.safetensors import SafetensorsSource, read_header

__all__ = ["unpack_torchao"]

Array = np.ndarray[Any, Any]

_INTEGERS = ("Int8Tensor", "IntxUnpackedToInt8Tensor")
_KNOWN = (*_INTEGERS, "Float8Tensor")
_PARTS = ("qdata", "scale", "zero_point")
_STORED_BITS = (2, 3, 4, 5, 6)  # others are kept as bytes


def unpack_torchao(
    state: Mapping[str, Expr], settings: Mapping[str, Any], reader: Reader
) -> Unpacked:
    """The weights of such a checkpoint.

    Args:
        state: stored tensors.
        settings: `quantization_config`; the headers say all that is needed.
        reader: of the stored tensors.

    Raises:
        UnsupportedError: a file of another kind, or a class of tensors that is not known.
    """
    if not isinstance(reader, SafetensorsSource):
        raise UnsupportedError(
            "torchao in torch files pickles its own classes, which are not run here; save the "
            "model with safe_serialization, or dequantize it with torchao"
        )
    found = Unpacked()
    classes = set()
    for name, described in _described(reader).items():
        kind = described.get("_type")
        if kind == "Tensor":
            continue
        if kind not in _KNOWN:
            raise UnsupportedError(
                f"{name}: torchao's {kind} is not known here (known: {', '.join(_KNOWN)}); "
                "dequantize the weights with torchao and convert the result"
            )
        classes.add(str(kind))
        try:
            problem = _weight(found, name, described, state)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            problem = f"its header is none that torchao writes ({type(error).__name__}: {error})"
        if problem:
            found.problems.append(f"{name}: {problem}")
    found.notes.append(
        f"torchao, {', '.join(sorted(classes)) or 'nothing packed'}: {len(found.weights)} weights"
    )
    return found


def _described(source: SafetensorsSource) -> dict[str, dict[str, Any]]:
    """What the headers say of each tensor."""
    found = {}
    for path in source.files:
        metadata = read_header(path)[0].get("__metadata__")
        for name, text in (metadata if isinstance(metadata, dict) else {}).items():
            if name in ("format", "tensor_names") or "." not in name:
                continue
            try:
                described = json.loads(text)
            except (ValueError, TypeError, RecursionError) as error:
                raise SourceError(
                    f"{path}: what its header says of {name} is no JSON: {error}; download it again"
                ) from None
            if isinstance(described, dict):
                found[name] = described
    return found


def _weight(
    found: Unpacked, name: str, described: Mapping[str, Any], state: Mapping[str, Expr]
) -> str:
    """Add one weight; what is wrong with it otherwise."""
    module, _, leaf = name.rpartition(".")
    listed = described["_tensor_data_names"]
    stored = {part: state.get(f"{module}._{leaf}_{part}") for part in listed}
    parts = {part: expr for part, expr in stored.items() if expr is not None}
    found.consumed.update(f"{module}._{leaf}_{part}" for part in parts)
    missing = sorted(set(listed) - parts.keys())
    other = sorted(set(listed) - set(_PARTS))
    if missing or other or not {"qdata", "scale"} <= parts.keys():
        return f"{', '.join(missing or other) or 'scales'} {'missing' if missing else 'not known'}"
    codes, scale, data = parts["qdata"], parts["scale"], described["_data"]
    block = tuple(map(int, data["block_size"]))
    if len(codes.shape) != 2 or len(block) != 2 or min(block) < 1:
        return f"{list(codes.shape)} in blocks of {list(block)} is no matrix"
    if described["_type"] == "Float8Tensor":
        whole = block in ((1, codes.shape[1]), codes.shape)
        grid = scale_grid(scale, codes.shape, None if whole else (block[0], block[1]))
        if grid is None or not codes.dtype.name.startswith("F8"):
            return f"{codes.dtype} {list(codes.shape)} with scales {list(scale.shape)}"
        found.weights[name] = float_weight(SmallFloats(name, codes, *grid))
        return ""
    return _integers(found, name, parts, data, block)


def _integers(
    found: Unpacked,
    name: str,
    parts: Mapping[str, Expr],
    data: Mapping[str, Any],
    block: tuple[int, ...],
) -> str:
    codes, scale, zeros = parts["qdata"], parts["scale"], parts.get("zero_point")
    (out, width), group = codes.shape, block[1]
    target = data.get("target_dtype")
    named = str(target["_data"]) if target else "int8"
    bits = int(named.removeprefix("int")) if named.removeprefix("int").isdecimal() else 0
    if not 1 <= bits <= 8 or codes.dtype.name != "I8" or width % 32:
        return f"{codes.dtype} {list(codes.shape)} of {named}, expected I8 and rows of 32 n values"
    if block[0] != 1 or scale.shape != (out, -(-width // group)):
        return (
            f"scales {list(scale.shape)} for {list(codes.shape)} in blocks of {list(block)}: "
            "expected groups along rows"
        )
    if zeros is not None and (zeros.shape != scale.shape or zeros.dtype.name != "I8"):
        return f"zero points {zeros.dtype} {list(zeros.shape)} for scales {list(scale.shape)}"
    middle = 2 ** (bits - 1)
    packed = bits if bits in _STORED_BITS else 8

    def unsigned_codes(rows: range, columns: range, reader: Reader) -> Array:
        signed = codes.read((rows, columns), reader).astype(np.int16)
        if signed.min(initial=0) < -middle or signed.max(initial=0) >= middle:
            raise SourceError(
                f"{name}: codes from {signed.min()} to {signed.max()} are none of {named}; the "
                "file is damaged, get another copy"
            )
        unsigned: Array = (signed + middle).astype(np.uint8)
        return unsigned

    def points_of(region: Region, reader: Reader) -> Array:
        assert zeros is not None
        points: Array = zeros.read(region, reader).astype(np.int32) + middle
        return points

    how = f"{named} + {middle}"
    words = repacked_words(name, how, packed, (out, width), unsigned_codes, codes)
    points: Expr | int = middle
    if zeros is not None:
        points = Computed(f"{name}#zeros", how, points_of, (zeros,), DTYPES["I32"], scale.shape)
    integers = Integers(name, packed, group, width, words, scale, points)
    found.weights[name] = integer_weight(integers)
    return ""
