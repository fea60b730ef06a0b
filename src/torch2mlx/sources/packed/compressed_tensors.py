"""Checkpoints of compressed-tensors (llm-compressor, vLLM): integers, fp8 and fp4.

`config_groups` says of each group of modules bits, type and strategy; `format` how they lie:

| format | tensors |
|---|---|
| pack-quantized | `weight_packed` I32 (along the input), `weight_scale`, `weight_shape`, \
`weight_zero_point` (packed along the output), `weight_g_idx` |
| int-quantized, naive-quantized | `weight` I8, `weight_scale`, `weight_zero_point` I8 |
| float-quantized, naive-quantized | `weight` fp8, `weight_scale` a tensor, row or block |
| nvfp4-pack-quantized | `weight_packed` U8, `weight_scale` fp8, `weight_global_scale` (divides) |
| mxfp4-pack-quantized, mxfp8-quantized | `weight_packed` U8 or `weight` fp8, scales U8 exponents |

(https://github.com/vllm-project/compressed-tensors)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from torch2mlx.dtypes import DTYPES
from torch2mlx.errors import UnsupportedError
from torch2mlx.planning.computed import Computed
from torch2mlx.planning.expressions import Bits, Expr, Reader, Reshape
from torch2mlx.planning.regions import Region, full
from torch2mlx.quantization.kernel import unpack_codes
from torch2mlx.sources.foreign import matches
from torch2mlx.sources.packed.floats import SmallFloats, float_weight
from torch2mlx.sources.packed.integers import Integers, integer_weight
from torch2mlx.sources.packed.scaled_floats import scale_grid
from torch2mlx.sources.packed.weight import Unpacked

__all__ = ["unpack_compressed_tensors"]

Array = np.ndarray[Any, Any]

_FORMATS = (
    "pack-quantized", "int-quantized", "float-quantized", "naive-quantized",
    "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized",
)  # fmt: skip
_PARTS = ("packed", "scale", "zero_point", "shape", "g_idx", "global_scale")


def unpack_compressed_tensors(
    state: Mapping[str, Expr], settings: Mapping[str, Any], reader: Reader
) -> Unpacked:
    """The weights of such a checkpoint.

    Args:
        state: stored tensors.
        settings: `quantization_config`.
        reader: of the stored tensors; shapes are read where nothing else tells them.

    Raises:
        UnsupportedError: a format that is not known, sparse weights, or transforms that are
            applied while the model runs.
    """
    groups = list(_groups(settings))
    sparsity = settings.get("sparsity_config")
    if isinstance(sparsity, Mapping) and sparsity.get("format") not in (None, "dense"):
        raise UnsupportedError(
            f"config.json: compressed-tensors with sparse weights ({sparsity.get('format')}) is "
            "not known here; decompress it with compressed-tensors"
        )
    moved = sorted(set(_online_transforms(settings)))
    if moved:
        raise UnsupportedError(
            f"config.json: compressed-tensors with transforms of activations ({', '.join(moved)}), "
            "which no MLX model applies; without them the weights are another model's. Take a "
            "checkpoint whose transforms are all in its weights"
        )
    found = Unpacked()
    for name in state:
        module, _, leaf = name.rpartition(".")
        if leaf != "weight_scale":
            continue
        parts = {p: e for p in _PARTS if (e := state.get(f"{module}.weight_{p}")) is not None}
        found.consumed.update(f"{module}.weight_{p}" for p in parts)
        plain = state.get(f"{module}.weight")
        if plain is not None:
            parts["plain"] = plain
        group = _group_of(module, groups)
        if group is None:
            found.problems.append(f"{module}: no group of config_groups names it")
            continue
        problem = _module(found, f"{module}.weight", parts, group, reader)
        if problem:
            found.problems.append(f"{module}: {problem}")
    forms = sorted({str(group["format"]) for group in groups})
    found.notes.append(f"compressed-tensors, {', '.join(forms)}: {len(found.weights)} weights")
    return found


def _online_transforms(settings: Mapping[str, Any]) -> Iterator[str]:
    """Where transforms are applied to activations; those of weights are in what is stored."""
    transforms = settings.get("transform_config")
    groups = transforms.get("config_groups") if isinstance(transforms, Mapping) else None
    for group in (groups or {}).values():
        yield from (
            str(place["location"])
            for place in group.get("apply") or ()
            if not str(place["location"]).startswith("weight_")
        )


def _groups(settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """weights, targets and format of each group."""
    listed = settings.get("config_groups")
    for name, group in (listed if isinstance(listed, Mapping) else {}).items():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        form = (group.get("format") if isinstance(group, Mapping) else None) or settings.get(
            "format"
        )
        if form not in _FORMATS or not isinstance(weights, Mapping):
            raise UnsupportedError(
                f"config.json: compressed-tensors, {name}: format {form!r} is none of "
                f"{', '.join(_FORMATS)}; decompress it with compressed-tensors"
            )
        yield {"weights": weights, "targets": group.get("targets") or [], "format": form}


def _group_of(module: str, groups: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The group that names a module; else the one that names a class of modules."""
    for group in groups:
        for target in group["targets"]:
            if target == module or module.endswith(f".{target}"):
                return group
            if target.startswith("re:") and matches(target[3:], module, "config_groups"):
                return group
    return next(
        (g for g in groups if any(re.fullmatch(r"[A-Z]\w*", t) for t in g["targets"])), None
    )


def _module(
    found: Unpacked, name: str, parts: Mapping[str, Expr], group: Mapping[str, Any], reader: Reader
) -> str:
    """Add one weight; what is wrong with it otherwise."""
    form, weights, scale = str(group["format"]), group["weights"], parts["scale"]
    bits, kind = weights.get("num_bits"), weights.get("type", "int")
    if form == "naive-quantized":
        form = "float-quantized" if kind == "float" else "int-quantized"
    stored = parts.get("packed" if "pack" in form else "plain")
    wanted = {"pack-quantized": "I32", "int-quantized": "I8"}.get(
        form, "U8" if "pack" in form else "F8_E4M3"
    )
    if stored is None or stored.dtype.name != wanted or not isinstance(bits, int):
        seen = "nothing" if stored is None else f"{stored.dtype} {list(stored.shape)}"
        return f"{form} of {bits} bits: expected {wanted}, found {seen}"
    if stored is parts.get("plain"):
        found.consumed.add(name)
    if form in ("pack-quantized", "int-quantized"):
        return _integers(found, name, parts, stored, group, reader)
    if form == "float-quantized":
        structure = weights.get("block_structure")
        block = tuple(structure) if weights.get("strategy") == "block" and structure else None
        if weights.get("strategy") == "group":
            block = (1, int(weights["group_size"]))
        grid = scale_grid(scale, stored.shape, block)
        if grid is None:
            return f"scales {list(scale.shape)} for {list(stored.shape)} in blocks of {block}"
        found.weights[name] = float_weight(SmallFloats(name, stored, *grid))
        return ""
    size = 16 if form.startswith("nvfp4") else 32
    width = stored.shape[-1] * (2 if stored.dtype.name == "U8" else 1)
    if weights.get("group_size") not in (None, size) or scale.shape[-1] * size != width:
        return (
            f"{form} has groups of {size}: scales {list(scale.shape)} for rows of {width}, "
            f"group_size {weights.get('group_size')}"
        )
    if form.startswith("mx"):
        scale = Bits(scale, DTYPES["F8_E8M0"]) if scale.dtype.name == "U8" else scale
        floats = SmallFloats(name, stored, scale, (1, size))
    else:
        factor = parts.get("global_scale")
        if factor is None:
            return "weight_global_scale missing"
        floats = SmallFloats(name, stored, scale, (1, size), factor, divide=True)
    found.weights[name] = float_weight(floats)
    return ""


def _integers(
    found: Unpacked,
    name: str,
    parts: Mapping[str, Expr],
    stored: Expr,
    group: Mapping[str, Any],
    reader: Reader,
) -> str:
    weights, scale = group["weights"], parts["scale"]
    bits = int(weights["num_bits"])
    packed = group["format"] == "pack-quantized"
    out = stored.shape[0]
    scale = Reshape(scale, (scale.size, 1)) if len(scale.shape) < 2 else scale
    if not packed:
        width, bits = stored.shape[1], 8
        if width % 4:
            return f"rows of {width} int8 values; expected a multiple of 4"
    else:
        width = stored.shape[1] * 32 // bits
        shape = parts.get("shape")
        if weights.get("strategy") == "group" and isinstance(weights.get("group_size"), int):
            width = scale.shape[1] * int(weights["group_size"])
        elif shape is not None:
            width = int(np.asarray(shape.read(full(shape.shape), reader))[-1])
    size = weights.get("group_size") if weights.get("strategy") == "group" else width
    if not isinstance(size, int) or -(-width * bits // 32) != -(
        -stored.shape[1] * 8 * (4 if packed else 1) // 32
    ):
        return (
            f"{bits} bits in groups of {size}: {list(stored.shape)} is not {width} values a row "
            f"with scales {list(scale.shape)}"
        )
    if scale.shape[0] == 1 and out > 1:  # one scale for the whole tensor
        scale = _one_for_all(name, scale, out)
    if scale.shape != (out, -(-width // size)):
        return f"scales {list(scale.shape)} for {[out, width]} in groups of {size}"
    zeros: Expr | int = 2 ** (bits - 1)
    if not weights.get("symmetric", True):
        stored_zeros = parts.get("zero_point")
        if stored_zeros is None:
            return "asymmetric, and weight_zero_point is missing"
        zeros = _zero_points(name, stored_zeros, bits, packed, scale.shape)
    words = Bits(stored, DTYPES["U32"]) if packed else _shifted(name, stored)
    integers = Integers(name, bits, size, width, words, scale, zeros, parts.get("g_idx"))
    found.weights[name] = integer_weight(integers)
    return ""


def _one_for_all(name: str, scale: Expr, out: int) -> Computed:
    def function(region: Region, reader: Reader) -> Array:
        one = scale.read((range(1), region[1]), reader)
        return np.broadcast_to(one, (len(region[0]), len(region[1])))

    shape = (out, scale.shape[1])
    return Computed(f"{name}#scale", "for all rows", function, (scale,), scale.dtype, shape)


def _shifted(name: str, stored: Expr) -> Computed:
    """int8 values as unsigned codes, four to a word."""

    def function(region: Region, reader: Reader) -> Array:
        rows, words = region
        part = stored.read((rows, range(words.start * 4, words.stop * 4)), reader)
        codes = np.ascontiguousarray(part).view(np.uint8) ^ np.uint8(0x80)
        return codes.view("<u4")

    shape = (stored.shape[0], stored.shape[1] // 4)
    return Computed(f"{name}#codes", "int8 + 128", function, (stored,), DTYPES["U32"], shape)


def _zero_points(
    name: str, stored: Expr, bits: int, packed: bool, shape: tuple[int, ...]
) -> Computed:
    """Zero points of unsigned codes, U8 [out, groups]."""

    def function(region: Region, reader: Reader) -> Array:
        rows, groups = region
        if not packed:
            part = np.ascontiguousarray(stored.read((rows, groups), reader))
            return part.view(np.uint8) ^ np.uint8(0x80)
        words = stored.read((range(stored.shape[0]), groups), reader).view(np.uint32).T
        short = -words.shape[1] % bits
        codes = unpack_codes(np.pad(words, ((0, 0), (0, short))), bits)
        return codes[:, rows.start : rows.stop].T

    shape = (shape[0], shape[1])
    return Computed(
        f"{name}#zeros", f"zero points of {bits} bits", function, (stored,), DTYPES["U8"], shape
    )
