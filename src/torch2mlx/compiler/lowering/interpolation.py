"""Resizing images, and sampling them at given places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.layout import channels_first, channels_last
from torch2mlx.compiler.lowering.registry import LoweringError, lowering
from torch2mlx.compiler.lowering.types import is_bool, is_floating
from torch2mlx.compiler.runtime import interpolation
from torch2mlx.compiler.runtime.sampling import affine_grid, grid_sample

__all__: list[str] = []

aten = torch.ops.aten


def _resize(
    b: Builder,
    function: Callable[..., Any],
    x: Value,
    size: Sequence[int] | None,
    scale: Sequence[float | None] | None,
    *leading: Any,
    **options: Any,
) -> Value:
    """Call a resizing function on a tensor in torch's layout, with the options that are set."""
    kwargs = {k: v for k, v in options.items() if v}
    if size is not None:
        kwargs["size"] = tuple(size)
    if scale is not None and any(f is not None for f in scale):
        kwargs["scale"] = tuple(scale)
    return channels_first(b, b.call(function, channels_last(b, x), *leading, **kwargs))


def _lower_nearest(exact: bool, by_list: bool) -> Callable[..., Value]:
    def lower(b: Builder, x: Value, output_size: Any, *scales: Any) -> Value:
        """upsample_nearest(input, output_size, scale factors)."""
        if is_bool(x.dtype):
            raise LoweringError("upsample_nearest: dtype=bool")
        scale = _factors(x, scales, by_list)
        return _resize(b, interpolation.interpolate_nearest, x, output_size, scale, exact=exact)

    return lower


def _factors(x: Value, scales: Sequence[Any], by_list: bool) -> Sequence[float | None] | None:
    if by_list:
        return scales[0] if scales else None
    return (*scales, *(None,) * (x.ndim - 2 - len(scales)))


def _lower_smooth(
    name: str, function: Callable[..., Any], leading: tuple[str, ...], by_list: bool
) -> Callable[..., Value]:
    def lower(b: Builder, x: Value, output_size: Any, align_corners: bool, *scales: Any) -> Value:
        """upsample(input, output_size, align_corners, scale factors)."""
        if not is_floating(x.dtype):
            raise LoweringError(f"{name}: dtype={x.dtype}")
        scale = _factors(x, scales, by_list)
        return _resize(b, function, x, output_size, scale, *leading, align_corners=align_corners)

    return lower


for _name, _exact in (("upsample_nearest", False), ("_upsample_nearest_exact", True)):
    for _rank in (1, 2, 3):
        _packet = getattr(aten, f"{_name}{_rank}d")
        lowering(_packet.default)(_lower_nearest(_exact, by_list=False))
        lowering(_packet.vec)(_lower_nearest(_exact, by_list=True))
for _name, _function, _leading in (
    ("upsample_linear1d", interpolation.interpolate_linear, ()),
    ("upsample_bilinear2d", interpolation.interpolate_linear, ()),
    ("upsample_trilinear3d", interpolation.interpolate_linear, ()),
    ("upsample_bicubic2d", interpolation.interpolate_cubic, ()),
    ("_upsample_bilinear2d_aa", interpolation.interpolate_antialiased, ("linear",)),
    ("_upsample_bicubic2d_aa", interpolation.interpolate_antialiased, ("cubic",)),
):
    _packet = getattr(aten, _name)
    lowering(_packet.default)(_lower_smooth(_name, _function, _leading, by_list=False))
    lowering(_packet.vec)(_lower_smooth(_name, _function, _leading, by_list=True))


MODES = ("linear", "nearest", "cubic")
PADDINGS = ("zeros", "border", "reflection")


@lowering(aten.grid_sampler.default, aten.grid_sampler_2d.default, aten.grid_sampler_3d.default)
def lower_grid_sampler(
    b: Builder,
    x: Value,
    grid: Value,
    interpolation_mode: int,
    padding_mode: int,
    align_corners: bool,
) -> Value:
    """grid_sampler(input, grid, interpolation_mode, padding_mode, align_corners)."""
    if interpolation_mode == 2 and x.ndim == 5:
        raise LoweringError("grid_sampler: interpolation_mode=bicubic of a volume")
    args = (MODES[interpolation_mode], PADDINGS[padding_mode], align_corners)
    return channels_first(b, b.call(grid_sample, channels_last(b, x), grid, *args))


@lowering(aten.affine_grid_generator.default)
def lower_affine_grid(b: Builder, theta: Value, size: Sequence[int], align_corners: bool) -> Value:
    """affine_grid_generator(theta, size, align_corners)."""
    result: Value = b.call(affine_grid, theta, tuple(size), align_corners)
    return result
