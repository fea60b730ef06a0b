"""AWQ checkpoints (AutoAWQ, "gemm"): codes packed along the output axis, eight to a word.

`qweight` I32 [in, out / 8], `qzeros` I32 [in / group, out / 8], `scales` [in / group, out].
Element e of a word lies in nibble 0, 4, 1, 5, 2, 6, 3, 7 (https://github.com/casper-hansen/AutoAWQ).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from torch2mlx.dtypes import DTYPES
from torch2mlx.errors import UnsupportedError
from torch2mlx.planning.computed import Computed
from torch2mlx.planning.expressions import Expr, Reader, Transpose
from torch2mlx.planning.regions import Region
from torch2mlx.sources.packed.integers import Integers, integer_weight
from torch2mlx.sources.packed.weight import Unpacked

__all__ = ["unpack_awq"]

Array = np.ndarray[Any, Any]

_NIBBLES = np.array([0, 4, 1, 5, 2, 6, 3, 7], np.uint32) * 4
_SUFFIXES = ("qweight", "qzeros", "scales")


def unpack_awq(state: Mapping[str, Expr], settings: Mapping[str, Any]) -> Unpacked:
    """The weights of an AWQ checkpoint.

    Args:
        state: stored tensors.
        settings: `quantization_config`: bits, group_size, version, zero_point.

    Raises:
        UnsupportedError: bits or a version that are not known.
    """
    bits, group = settings.get("bits", settings.get("w_bit")), settings.get("group_size")
    group = settings.get("q_group_size") if group is None else group
    version = str(settings.get("version", "gemm")).lower()
    if bits != 4 or not isinstance(group, int) or version != "gemm":
        raise UnsupportedError(
            f"config.json: AWQ with bits {bits!r}, group_size {group!r} and version {version!r}: "
            "expected 4 bits, a number, and gemm; save the model in that version"
        )
    found = Unpacked()
    for name in state:
        module, _, leaf = name.rpartition(".")
        if leaf == "qweight":
            _module(found, module, state, group)
    found.notes.append(f"AWQ, 4 bits in groups of {group}: {len(found.weights)} weights")
    return found


def _module(found: Unpacked, module: str, state: Mapping[str, Expr], group: int) -> None:
    qweight, qzeros, scales = (state.get(f"{module}.{s}") for s in _SUFFIXES)
    found.consumed.update(f"{module}.{s}" for s in _SUFFIXES if f"{module}.{s}" in state)
    assert qweight is not None
    if scales is None or qzeros is None:
        missing = [s for s in _SUFFIXES if f"{module}.{s}" not in state]
        found.problems.append(f"{module}: {' and '.join(missing)} missing beside qweight")
        return
    if len(qweight.shape) != 2:
        found.problems.append(f"{module}: qweight {list(qweight.shape)} is no matrix")
        return
    width, out = qweight.shape[0], qweight.shape[1] * 8
    size = group if group > 0 else width
    groups = -(-width // size)
    if scales.shape != (groups, out) or qzeros.shape != (groups, out // 8):
        found.problems.append(
            f"{module}: for qweight {list(qweight.shape)} in groups of {size}: scales "
            f"{list(scales.shape)} and qzeros {list(qzeros.shape)} instead of {[groups, out]} and "
            f"{[groups, out // 8]}"
        )
        return
    if {qweight.dtype.name, qzeros.dtype.name} != {"I32"} or not scales.dtype.floating:
        found.problems.append(
            f"{module}: {qweight.dtype} codes, {qzeros.dtype} zero points, {scales.dtype} scales"
        )
        return
    name = f"{module}.weight"
    words = Computed(
        f"{name}#codes", "AWQ codes along rows", _Words(qweight), (qweight,), DTYPES["U32"],
        (out, -(-width // 8)),
    )  # fmt: skip
    zeros = Computed(
        f"{name}#zeros", "AWQ zero points", _Codes(qzeros), (qzeros,), DTYPES["U8"], (out, groups)
    )
    integers = Integers(name, 4, size, width, words, Transpose(scales, (1, 0)), zeros)
    found.weights[name] = integer_weight(integers)


class _Codes:
    """Codes U8 [columns * 8, rows] of words [rows, columns]."""

    def __init__(self, words: Expr) -> None:
        self._words = words

    def __call__(self, region: Region, reader: Reader) -> Array:
        out, along = region
        columns = range(out.start // 8, -(-out.stop // 8))
        words = self._words.read((along, columns), reader).view(np.uint32)
        codes = ((words[:, :, None] >> _NIBBLES) & 15).astype(np.uint8)
        first = out.start - columns.start * 8
        return codes.reshape(len(along), -1)[:, first : first + len(out)].T


class _Words:
    """The same codes as MLX packs them, eight inputs to a word."""

    def __init__(self, words: Expr) -> None:
        self._codes = _Codes(words)
        self._width = words.shape[0]

    def __call__(self, region: Region, reader: Reader) -> Array:
        rows, words = region
        inputs = range(words.start * 8, min(words.stop * 8, self._width))
        codes = self._codes((rows, inputs), reader)
        if len(inputs) < len(words) * 8:
            codes = np.pad(codes, ((0, 0), (0, len(words) * 8 - len(inputs))))
        packed: Array = codes[:, 0::2] | (codes[:, 1::2] << 4)
        return np.ascontiguousarray(packed).view("<u4")
