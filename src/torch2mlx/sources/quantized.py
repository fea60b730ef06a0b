"""MLX's own quantized folders as a source: each packed module becomes its dequantized weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch2mlx.dtypes import DType, parse_dtype
from torch2mlx.errors import SourceError
from torch2mlx.planning.expressions import Expr
from torch2mlx.planning.functions import AlongRows
from torch2mlx.quantization.scheme import MODES

__all__ = ["dequantized_state"]

_FURTHER_BITS = {"affine": (1,)}  # that MLX has and nothing here writes
_FLOATS = ("float16", "bfloat16", "float32")


def dequantized_state(state: Mapping[str, Expr], config: Mapping[str, Any]) -> dict[str, Expr]:
    """A state in which every (weight, scales, biases) triple is one weight in floating point.

    Args:
        state: tensors of an MLX folder.
        config: its config.json; `quantization` names the format, per module where it differs.

    Raises:
        SourceError: the config names a format that the tensors do not have.
    """
    entries = config.get("quantization")
    if not isinstance(entries, Mapping):
        return dict(state)
    result = dict(state)
    for name in state:
        module, _, leaf = name.rpartition(".")
        if leaf == "scales" and f"{module}.weight" in state:
            entry = entries.get(module)
            own = entry if isinstance(entry, Mapping) else entries
            result[f"{module}.weight"] = _dequantized(module, state, own, config)
            del result[name]
            result.pop(f"{module}.biases", None)
    return result


def _dequantized(
    module: str, state: Mapping[str, Expr], entry: Mapping[str, Any], config: Mapping[str, Any]
) -> Expr:
    weight, scales = state[f"{module}.weight"], state[f"{module}.scales"]
    biases = state.get(f"{module}.biases")
    bits, group, mode = entry.get("bits"), entry.get("group_size"), entry.get("mode", "affine")
    form = MODES.get(str(mode))
    fits = (
        form is not None
        and type(bits) is int
        and type(group) is int
        and bits in (*form.bits, *_FURTHER_BITS.get(str(mode), ()))
        and group in form.group_sizes
        and weight.dtype.name == "U32"
        and weight.shape[-1] * 32 == scales.shape[-1] * group * bits
        and (mode == "affine") == (biases is not None)
    )
    if not fits or not isinstance(bits, int):
        raise SourceError(
            f"{module}.weight: {weight.dtype} {list(weight.shape)} with scales "
            f"{list(scales.shape)} is not {bits} bits in groups of {group} ({mode}), as "
            "config.json says; the folder's config and weights do not belong together"
        )
    dtype = _float_type(scales.dtype, config)

    def dequantize(weight: Any, scales: Any, biases: Any = None) -> Any:
        import mlx.core as mx

        return mx.dequantize(
            weight,
            scales,
            biases,
            group_size=group,
            bits=bits,
            mode=mode,
            dtype=getattr(mx, str(dtype.mx_name)),
        )

    operands = (weight, scales) if biases is None else (weight, scales, biases)
    shape = (*weight.shape[:-1], weight.shape[-1] * 32 // bits)
    return AlongRows(f"dequantize {mode}", dequantize, operands, dtype, shape)


def _float_type(scales: DType, config: Mapping[str, Any]) -> DType:
    """Affine scales have the weights' type; the other formats' do not tell it."""
    if scales.floating:
        return scales
    name = str(config.get("torch_dtype") or config.get("dtype")).removeprefix("torch.")
    return parse_dtype(name if name in _FLOATS else "bfloat16")
