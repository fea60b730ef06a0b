"""The plan that an existing MLX folder must have been made by, whoever made it.

Names, dtypes and quantization are read off the folder; values are what the source says.  So a
folder of any tool can be held against its PyTorch source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch2mlx.architectures.port import Port, Target
from torch2mlx.errors import OptionError, PlanError
from torch2mlx.planning.expressions import Expr
from torch2mlx.planning.functions import cast
from torch2mlx.planning.grids import StoredGrids
from torch2mlx.planning.plan import Output
from torch2mlx.planning.shards import TensorSpec
from torch2mlx.quantization.scheme import Scheme
from torch2mlx.sources.base import Checkpoint, Packed, TensorInfo

__all__ = ["recover_outputs"]


def recover_outputs(
    checkpoint: Checkpoint,
    port: Port,
    config: Mapping[str, Any],
    written: Mapping[str, TensorInfo],
) -> tuple[Output, ...]:
    """What each written tensor must hold.

    Args:
        checkpoint: the PyTorch source.
        port: for the source's config.
        config: config.json of the folder; its `quantization` names the formats.
        written: tensors of the folder by name.

    Raises:
        PlanError: tensors are missing, unknown or of the wrong shape; all in one message.
    """
    mapping = port.map_state(checkpoint.state)
    grids = StoredGrids(checkpoint)
    outputs, problems = [], []
    expected: set[str] = set()
    for name, expr in mapping.outputs.items():
        target = port.targets[name]
        try:
            output = _output(target, expr, config, written)
        except PlanError as error:
            problems.append(str(error))
            continue
        packed = grids.of(expr, output.scheme)
        if packed is not None and _holds(packed, output, written):
            output = replace(output, packed=packed)
        outputs.append(output)
        expected.update(spec.name for spec in output.specs)
    problems += [f"unexpected: {name}" for name in written if name not in expected]
    if problems:
        raise PlanError(
            f"the MLX folder does not hold the model of its source ({len(problems)} problems):\n  "
            + "\n  ".join(problems[:20])
        )
    return tuple(outputs)


def _holds(packed: Packed, output: Output, written: Mapping[str, TensorInfo]) -> bool:
    """Whether the folder can have kept the stored grid: its scales have the stored dtype."""
    return written[output.name.removesuffix("weight") + "scales"].dtype == packed.scales.dtype


def _output(
    target: Target, expr: Expr, config: Mapping[str, Any], written: Mapping[str, TensorInfo]
) -> Output:
    module = target.name.removesuffix("weight")
    if target.name not in written:
        raise PlanError(f"missing: {target.name} {list(target.shape)}")
    if target.quantizable and f"{module}scales" in written:
        scheme = _scheme(target, config, written)
        scales = written[f"{module}scales"]
        final = cast(expr, scales.dtype) if scales.dtype.floating else expr
        layout = scheme.layout(target.shape, final.dtype)
        specs = tuple(TensorSpec(module + part, d, shape) for part, (d, shape) in layout.items())
    else:
        scheme = None
        info = written[target.name]
        final = cast(expr, info.dtype)
        specs = (TensorSpec(target.name, info.dtype, target.shape),)
    for spec in specs:
        found = written.get(spec.name)
        if found is None:
            raise PlanError(f"missing: {spec.name} {list(spec.shape)}")
        if found.shape != spec.shape:
            raise PlanError(
                f"misshapen: {spec.name} is {list(found.shape)}, expected {list(spec.shape)}"
            )
    return Output(target.name, final, scheme, None, specs)


def _scheme(target: Target, config: Mapping[str, Any], written: Mapping[str, TensorInfo]) -> Scheme:
    """The format that a loader will assume: the module's own entry, else the one for all.

    mlx-lm goes by the shapes where a module has no entry, other programs by the format for all,
    so these must agree.
    """
    entries = config.get("quantization") or {}
    if not isinstance(entries, Mapping):
        raise PlanError(f"config.json: quantization is {str(entries)[:40]!a}; expected an object")
    entry = entries.get(target.module)
    try:
        if isinstance(entry, Mapping):
            return _named(entry)
        found = _by_shapes(target, written)
    except OptionError as error:
        raise PlanError(f"{target.name}: {error}") from None
    if "bits" in entries and found.to_config() != {"mode": "affine", **_format(entries)}:
        raise PlanError(
            f"{target.name}: stored as {found}, but quantization in config.json says "
            f"{_format(entries)}"
        )
    return found


def _format(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entries[key] for key in ("group_size", "bits", "mode") if key in entries}


def _named(entry: Mapping[str, Any]) -> Scheme:
    return Scheme.resolve(entry.get("bits"), entry.get("group_size"), entry.get("mode", "affine"))


def _by_shapes(target: Target, written: Mapping[str, TensorInfo]) -> Scheme:
    module = target.name.removesuffix("weight")
    width = target.shape[-1]
    bits = written[target.name].shape[-1] * 32 // width
    scales = written[f"{module}scales"]
    group = width // max(1, scales.shape[-1])
    if scales.dtype.floating:
        return Scheme.resolve(bits, group, "affine")
    mode = {(4, 32): "mxfp4", (4, 16): "nvfp4", (8, 32): "mxfp8"}.get((bits, group))
    if mode is None:
        raise PlanError(f"{target.name}: {bits} bits in groups of {group} is no format of MLX")
    return Scheme.resolve(bits, group, mode)
