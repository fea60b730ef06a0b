"""GPTQ checkpoints (AutoGPTQ, GPTQModel): codes packed along the input axis.

`qweight` I32 [in * bits / 32, out], `qzeros` I32 [groups, out * bits / 32], `scales` [groups, out]
and `g_idx` [in].  Format "gptq" stores zero points less 1, "gptq_v2" as they are
(https://github.com/AutoGPTQ/AutoGPTQ, nn_modules/qlinear).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from torch2mlx.dtypes import DTYPES
from torch2mlx.errors import UnsupportedError
from torch2mlx.planning.computed import Computed
from torch2mlx.planning.expressions import Bits, Expr, Reader, Transpose
from torch2mlx.planning.regions import Region
from torch2mlx.quantization.kernel import unpack_codes
from torch2mlx.sources.packed.integers import Integers, integer_weight
from torch2mlx.sources.packed.weight import Unpacked

__all__ = ["unpack_gptq"]

Array = np.ndarray[Any, Any]

_SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")


def unpack_gptq(state: Mapping[str, Expr], settings: Mapping[str, Any]) -> Unpacked:
    """The weights of a GPTQ checkpoint.

    Args:
        state: stored tensors.
        settings: `quantization_config`: bits, group_size, checkpoint_format.

    Raises:
        UnsupportedError: bits or a format that are not known.
    """
    bits, group = settings.get("bits"), settings.get("group_size")
    form = settings.get("checkpoint_format") or "gptq"
    if bits not in (2, 3, 4, 8) or not isinstance(group, int) or form not in ("gptq", "gptq_v2"):
        raise UnsupportedError(
            f"config.json: GPTQ with bits {bits!r}, group_size {group!r} and checkpoint_format "
            f"{form!r}: expected 2, 3, 4 or 8 bits, a number, and gptq or gptq_v2"
        )
    if settings.get("dynamic"):
        raise UnsupportedError(
            "config.json: GPTQ with other bits for some modules (dynamic) is not known here; "
            "dequantize it with GPTQModel"
        )
    found = Unpacked()
    for name in state:
        module, _, leaf = name.rpartition(".")
        if leaf == "qweight":
            _module(found, module, state, bits, group, shifted=form == "gptq")
    found.notes.append(
        f"GPTQ, {bits} bits in groups of {group if group > 0 else 'a whole row'}: "
        f"{len(found.weights)} weights"
    )
    if settings.get("desc_act") and group > 0:
        found.notes.append(
            "desc_act: groups are made of inputs in the order of their activations (g_idx), which "
            "no format of MLX expresses; such weights are dequantized, and -q rounds them anew"
        )
    return found


def _module(
    found: Unpacked, module: str, state: Mapping[str, Expr], bits: int, group: int, shifted: bool
) -> None:
    parts = {s: state.get(f"{module}.{s}") for s in _SUFFIXES}
    found.consumed.update(f"{module}.{s}" for s, expr in parts.items() if expr is not None)
    qweight, qzeros, scales, order = (parts[s] for s in _SUFFIXES)
    assert qweight is not None
    if qzeros is None or scales is None:
        missing = [s for s in ("qzeros", "scales") if parts[s] is None]
        found.problems.append(f"{module}: {' and '.join(missing)} missing beside qweight")
        return
    if len(qweight.shape) != 2:
        found.problems.append(f"{module}: qweight {list(qweight.shape)} is no matrix")
        return
    width, out = qweight.shape[0] * 32 // bits, qweight.shape[1]
    size = group if group > 0 else width
    groups = -(-width // size)
    expected = {
        "qzeros": (groups, out * bits // 32),
        "scales": (groups, out),
        "g_idx": (width,),
    }
    wrong = [
        f"{s} {list(expr.shape)} instead of {list(shape)}"
        for s, shape in expected.items()
        if (expr := parts[s]) is not None and expr.shape != shape
    ]
    if qweight.dtype.name != "I32" or qzeros.dtype.name != "I32" or not scales.dtype.floating:
        wrong.append(f"{qweight.dtype} codes, {qzeros.dtype} zero points, {scales.dtype} scales")
    if wrong:
        found.problems.append(
            f"{module}: for qweight {list(qweight.shape)} with {bits} bits in groups of {size}: "
            + ", ".join(wrong)
        )
        return
    name = f"{module}.weight"
    words = Transpose(Bits(qweight, DTYPES["U32"]), (1, 0))
    zeros = _zero_points(name, qzeros, bits, shifted, (out, groups))
    integers = Integers(name, bits, size, width, words, Transpose(scales, (1, 0)), zeros, order)
    found.weights[name] = integer_weight(integers)


def _zero_points(
    name: str, qzeros: Expr, bits: int, shifted: bool, shape: tuple[int, int]
) -> Computed:
    """Zero points U8 [out, groups]; where 1 is missing, it is added within the code's bits."""

    def function(region: Region, reader: Reader) -> Array:
        rows, groups = region
        words = qzeros.read((groups, range(qzeros.shape[1])), reader)
        codes = unpack_codes(words.view(np.uint32), bits)[:, rows.start : rows.stop]
        if shifted:
            codes = (codes + 1) & (2**bits - 1)
        return codes.T

    how = f"zero points of {bits} bits{' + 1' if shifted else ''}"
    return Computed(f"{name}#zeros", how, function, (qzeros,), DTYPES["U8"], shape)
