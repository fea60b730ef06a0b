"""Packed checkpoints: one table of quantization methods, found by config.json.

A method turns stored tensors into weights: values as expressions, and where a format of MLX has
exactly these values, the tensors of that format.  What the table does not know is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch2mlx.errors import SourceError, UnsupportedError
from torch2mlx.planning.expressions import Expr, Reader
from torch2mlx.sources.base import Packed
from torch2mlx.sources.foreign import foreign_values
from torch2mlx.sources.packed.awq import unpack_awq
from torch2mlx.sources.packed.bitsandbytes import unpack_bitsandbytes
from torch2mlx.sources.packed.compressed_tensors import unpack_compressed_tensors
from torch2mlx.sources.packed.gptq import unpack_gptq
from torch2mlx.sources.packed.hqq import unpack_hqq
from torch2mlx.sources.packed.scaled_floats import unpack_fp8, unpack_modelopt, unpack_mxfp4
from torch2mlx.sources.packed.torchao import unpack_torchao
from torch2mlx.sources.packed.weight import Grids, Unpacked

__all__ = ["METHODS", "UnpackedState", "unpacked_state"]

Method = Callable[[Mapping[str, Expr], Mapping[str, Any], Reader], Unpacked]


def _from_headers(method: Callable[[Mapping[str, Expr], Mapping[str, Any]], Unpacked]) -> Method:
    return lambda state, settings, _: method(state, settings)


METHODS: dict[str, Method] = {
    "awq": _from_headers(unpack_awq),
    "bitsandbytes": unpack_bitsandbytes,
    "compressed-tensors": unpack_compressed_tensors,
    "fbgemm_fp8": _from_headers(unpack_fp8),
    "fp8": _from_headers(unpack_fp8),
    "gptq": _from_headers(unpack_gptq),
    "hqq": unpack_hqq,
    "modelopt": _from_headers(unpack_modelopt),
    "mxfp4": _from_headers(unpack_mxfp4),
    "torchao": unpack_torchao,
}
"""By `quant_method` in config.json."""

_LEFT_TO_PORTS = ("bitnet",)  # mlx-lm's ports of these read the packed tensors
_KEYS = ("quantization_config", "compression_config")
_LISTED = 12
_SMALL = ("F8", "I8", "U8")  # dtypes of codes
# Scales of activations and caches, which MLX keeps in floating point.
_OF_ACTIVATIONS = re.compile(
    r".*(input_scale(_ub)?|input_global_scale|output_scale|k_scale|v_scale|"
    r"input_zero_point|activation_scale\w*)"
)
_TELLTALE = re.compile(
    r".*(\.qweight|\.weight_packed|\.weight_scale_inv|\.SCB|\.quant_state\.\w+|proj_blocks"
    r"|\.W_q|\._\w+_qdata)"
)


@dataclass(frozen=True)
class UnpackedState:
    """A packed checkpoint as plain weights.

    Attributes:
        state: every tensor under its Hugging Face name.
        config: config.json without what described the packing.
        grids: weights that formats of MLX can take as they are.
        plain: names of weights that were not packed.
        notes: what a user should know.
    """

    state: dict[str, Expr]
    config: dict[str, Any]
    grids: Mapping[str, Packed]
    plain: frozenset[str]
    notes: tuple[str, ...]


def unpacked_state(
    state: Mapping[str, Expr], config: Mapping[str, Any], reader: Reader, where: str
) -> UnpackedState | None:
    """The weights of a packed checkpoint; None where nothing is packed.

    Args:
        state: stored tensors.
        config: config.json.
        reader: of the stored tensors.
        where: the checkpoint, for messages.

    Raises:
        SourceError: tensors are missing or do not fit the config; all in one message.
        UnsupportedError: a method that is not known.
    """
    settings = _settings(config)
    if settings is None:
        packed = next((name for name in state if _TELLTALE.fullmatch(name)), None)
        if packed is not None:
            raise SourceError(
                f"{where}: {packed} is part of a packed weight, but config.json has no "
                "quantization_config that says how; get the original config.json"
            )
        return None
    method = str(settings.get("quant_method") or settings.get("quantization_method") or "")
    if not method and ("load_in_4bit" in settings or "load_in_8bit" in settings):
        method = "bitsandbytes"
    if method in _LEFT_TO_PORTS:
        return None
    if method not in METHODS:
        raise UnsupportedError(
            f"{where}: the weights are packed by {method or 'an unnamed method'!r}, which is not "
            f"known here (known: {', '.join(METHODS)}); dequantize them with the library that "
            "packed them and convert the result"
        )
    with foreign_values(f"{where}: quantization_config ({method})", "get the original config.json"):
        found = METHODS[method](state, settings, reader)
    rest = {name: expr for name, expr in state.items() if name not in found.consumed}
    ignored = [name for name in rest if _OF_ACTIVATIONS.fullmatch(name)]
    problems = [
        *found.problems,
        *(
            f"{name}: {rest[name].dtype} without scales"
            for name in rest
            if rest[name].dtype.name.startswith(_SMALL) and name not in ignored
        ),
        *(f"{name}: belongs to no weight" for name in rest if _TELLTALE.fullmatch(name)),
    ]
    if problems:
        more = len(problems) - _LISTED
        raise SourceError(
            f"{where}: packed weights and config.json do not fit together ({len(problems)} "
            f"problems, method {method}):\n  "
            + "\n  ".join(problems[:_LISTED])
            + (f"\n  ... and {more} more" if more > 0 else "")
            + "\nThe checkpoint is damaged or its config.json is another one's; download both again"
        )
    for name in ignored:
        del rest[name]
    notes = list(found.notes)
    if ignored:
        notes.append(
            f"{len(ignored)} scales of activations are left out: MLX keeps activations in "
            "floating point"
        )
    return UnpackedState(
        state={**rest, **{name: weight.tensor for name, weight in found.weights.items()}},
        config=_without_settings(config),
        grids=Grids(found.weights, reader),
        plain=frozenset(rest),
        notes=tuple(notes),
    )


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for part in (config, config.get("text_config")):
        for key in _KEYS:
            settings = part.get(key) if isinstance(part, Mapping) else None
            if isinstance(settings, Mapping) and settings:
                if key == "compression_config":
                    return {"quant_method": "compressed-tensors", **settings}
                return settings
    return None


def _without_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    plain = {k: v for k, v in config.items() if k not in _KEYS}
    if isinstance(plain.get("text_config"), dict):
        plain["text_config"] = _without_settings(plain["text_config"])
    return plain
