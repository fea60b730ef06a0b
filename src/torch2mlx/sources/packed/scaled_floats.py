"""Checkpoints of fp8 or fp4 weights beside their scales: DeepSeek's, FBGEMM's, ModelOpt's, gpt-oss.

| method | weight | scales, which multiply |
|---|---|---|
| fp8 | `weight` fp8 (or fp4 in I8) | `weight_scale_inv`, a grid of blocks; or `weight_scale` |
| fbgemm_fp8 | `weight` fp8; experts fp8 [experts, in, out] | `*_scale` [out, 1]; by output |
| modelopt FP8 | `weight` fp8 | `weight_scale`, one number |
| modelopt NVFP4 | `weight` U8 [out, in / 2] | `weight_scale` fp8 by 16, `weight_scale_2` |
| mxfp4 (gpt-oss) | `*_blocks` U8 [experts, out, groups, 16] | `*_scales` U8, exponents |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch2mlx.dtypes import DTYPES
from torch2mlx.errors import UnsupportedError
from torch2mlx.planning.expressions import Bits, Expr, Reshape
from torch2mlx.sources.packed.floats import SmallFloats, float_weight
from torch2mlx.sources.packed.weight import Unpacked

__all__ = ["scale_grid", "unpack_fp8", "unpack_modelopt", "unpack_mxfp4"]


def unpack_fp8(state: Mapping[str, Expr], settings: Mapping[str, Any]) -> Unpacked:
    """The weights of an fp8 checkpoint (quant_method fp8 or fbgemm_fp8).

    Args:
        state: stored tensors.
        settings: `quantization_config`: weight_block_size.
    """
    sizes = settings.get("weight_block_size")
    block = (int(sizes[0]), int(sizes[1])) if isinstance(sizes, list) and len(sizes) == 2 else None
    found = Unpacked()
    by_output = settings.get("quant_method") == "fbgemm_fp8"
    for name, scales in state.items():
        for suffix in ("_scale_inv", "_scale"):
            weight = name.removesuffix(suffix)
            if weight != name and weight in state:
                if by_output and len(state[weight].shape) == 3:
                    _stacked_by_output(found, weight, state[weight], scales)
                    found.consumed.add(name)
                    continue
                _pair(found, weight, state[weight], scales, block)
                found.consumed.add(name)
    found.notes.append(
        f"fp8, {f'blocks of {list(block)}' if block else 'a scale a tensor or row'}: "
        f"{len(found.weights)} weights"
    )
    return found


def unpack_modelopt(state: Mapping[str, Expr], settings: Mapping[str, Any]) -> Unpacked:
    """The weights of a checkpoint of NVIDIA's ModelOpt.

    Args:
        state: stored tensors.
        settings: `quantization_config`: quant_algo.

    Raises:
        UnsupportedError: another algorithm than FP8 or NVFP4.
    """
    inner = settings.get("quantization")
    settings = inner if isinstance(inner, Mapping) else settings
    algorithm = str(settings.get("quant_algo"))
    if algorithm == "FP8":
        return unpack_fp8(state, {})
    if algorithm != "NVFP4":
        raise UnsupportedError(
            f"config.json: ModelOpt with quant_algo {algorithm!r}; expected FP8 or NVFP4; "
            "dequantize the weights with ModelOpt and convert the result"
        )
    found = Unpacked()
    for name, factor in state.items():
        weight = name.removesuffix("_scale_2")
        if weight == name:
            continue
        codes, scales = state.get(weight), state.get(f"{weight}_scale")
        found.consumed.add(name)
        if codes is None or scales is None:
            found.problems.append(f"{name}: without {weight} and {weight}_scale")
            continue
        found.consumed.update((weight, f"{weight}_scale"))
        _fp4(found, weight, codes, scales, 16, factor)
    found.notes.append(f"NVFP4 with a factor a tensor: {len(found.weights)} weights")
    return found


def unpack_mxfp4(state: Mapping[str, Expr], settings: Mapping[str, Any]) -> Unpacked:
    """The experts of gpt-oss: [experts, out, in] in blocks; transformers holds [experts, in, out].

    Args:
        state: stored tensors.
        settings: `quantization_config`.
    """
    found = Unpacked()
    for name, blocks in state.items():
        weight = name.removesuffix("_blocks")
        if weight == name:
            continue
        found.consumed.update((name, f"{weight}_scales"))
        scales = state.get(f"{weight}_scales")
        if scales is None:
            found.problems.append(f"{name}: {weight}_scales missing")
            continue
        fits = (
            len(blocks.shape) == 4
            and blocks.shape[-1] == 16
            and blocks.shape[:-1] == scales.shape
            and {blocks.dtype.name, scales.dtype.name} == {"U8"}
        )
        if not fits:
            found.problems.append(
                f"{name}: {blocks.dtype} {list(blocks.shape)} with {scales.dtype} scales "
                f"{list(scales.shape)}: expected U8 [experts, out, groups, 16] and U8 [experts, "
                "out, groups]"
            )
            continue
        codes = Reshape(blocks, (*blocks.shape[:2], blocks.shape[2] * 16))
        floats = SmallFloats(weight, codes, Bits(scales, DTYPES["F8_E8M0"]), (1, 32))
        found.weights[weight] = float_weight(floats, transposed=True)
    found.notes.append(f"MXFP4: {len(found.weights)} stacks of experts")
    return found


def _pair(
    found: Unpacked, name: str, weight: Expr, scales: Expr, block: tuple[int, int] | None
) -> None:
    """A weight with its scales, whose grid tells the blocks where the config does not."""
    if weight.dtype.name == "I8":  # two fp4 elements to a byte
        weight = Bits(weight, DTYPES["U8"])
    if weight.dtype.name not in ("F8_E4M3", "F8_E5M2", "U8") or len(weight.shape) < 2:
        found.problems.append(f"{name}: {weight.dtype} {list(weight.shape)} beside fp8 scales")
        return
    out, width = weight.shape[-2], weight.shape[-1] * (2 if weight.dtype.name == "U8" else 1)
    if weight.dtype.name == "U8":
        block = (1, width // max(1, scales.shape[-1]))
    grid = scale_grid(scales, (*weight.shape[:-2], out, width), block)
    if grid is None:
        found.problems.append(
            f"{name}: scales {list(scales.shape)} for a weight {[*weight.shape[:-1], width]} in "
            f"blocks of {list(block) if block else 'a row or the tensor'}"
        )
        return
    found.consumed.add(name)
    found.weights[name] = float_weight(SmallFloats(name, weight, grid[0], grid[1]))


def _stacked_by_output(found: Unpacked, name: str, weight: Expr, scales: Expr) -> None:
    """FBGEMM's experts [experts, in, out], whose scales are [experts, 1, out] or [experts, out, 1].

    Transformers writes the first for gate_up_proj and the second for down_proj.
    """
    experts, width, out = weight.shape
    grids = ((experts, 1, out), (experts, out, 1))
    if weight.dtype.name != "F8_E4M3" or scales.shape not in grids:
        found.problems.append(
            f"{name}: {weight.dtype} {list(weight.shape)} with scales {list(scales.shape)}; "
            f"expected F8_E4M3 and {list(grids[0])} or {list(grids[1])}"
        )
        return
    found.consumed.add(name)
    grid = Reshape(scales, grids[0])
    found.weights[name] = float_weight(SmallFloats(name, weight, grid, (width, 1)))


def scale_grid(
    scales: Expr, shape: tuple[int, ...], block: tuple[int, int] | None
) -> tuple[Expr, tuple[int, int]] | None:
    """Scales as [..., rows, columns] of blocks, and the size of these; None where they do not fit.

    Args:
        scales: one number, [out] or [out, 1], or a grid.
        shape: of the weight.
        block: what the config says, or None.
    """
    *lead, out, width = shape
    if scales.size == 1 and not lead:
        return Reshape(scales, (1, 1)), (out, width)
    if block is not None:
        grid = (*lead, -(-out // block[0]), -(-width // block[1]))
        return (scales, block) if scales.shape == grid else None
    for size, grid in (((out, width), (*lead, 1, 1)), ((1, width), (*lead, out, 1))):
        if scales.shape in (grid, grid[:-1]):
            return Reshape(scales, grid), size
    return None


def _fp4(
    found: Unpacked, name: str, codes: Expr, scales: Expr, group: int, factor: Expr | None
) -> None:
    shape = (*codes.shape[:-1], codes.shape[-1] * 2 // group)
    if codes.dtype.name != "U8" or scales.shape != shape or not scales.dtype.floating:
        found.problems.append(
            f"{name}: {codes.dtype} {list(codes.shape)} with {scales.dtype} scales "
            f"{list(scales.shape)}: expected U8 and scales {list(shape)}, groups of {group}"
        )
        return
    found.weights[name] = float_weight(SmallFloats(name, codes, scales, (1, group), factor))
