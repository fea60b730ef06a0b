"""Resizing and sampling: every mode, by size and by factor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from table import FLOATS, INTEGERS, Sample, TensorMaker, Tolerance, call, case, differs, refused

aten = torch.ops.aten
SIZE = (7, 5, 6)
INTEGER = refused("weighted means of integers", dtypes=INTEGERS)


def resized(rank: int, corners: tuple[Any, ...], by_list: bool) -> Any:
    """Samples of `.vec` (by_list) or `.default`."""

    def samples(t: TensorMaker) -> Iterator[Sample]:
        x = t(2, 3, *SIZE[:rank])
        for corner in corners:
            for size in ((14, 15, 6), (3, 2, 4), (9, 11, 13), (1, 1, 1), SIZE, (10, 3, 12)):
                tail = (None,) if by_list else ()
                yield call(x, list(size[:rank]), *corner, *tail)
            for factor in (2.0, 2.5, 0.6, 1.1, 3.0, 0.31):
                factors = [factor, factor, 2.0][:rank]
                if by_list:
                    yield call(x, None, *corner, factors)
                else:
                    size = [int(n * f) for n, f in zip(x.shape[2:], factors, strict=True)]
                    yield call(x, size, *corner, *factors)

    return samples


SMOOTH = {
    torch.float32: Tolerance(2e-5, 2e-5),
    torch.float16: Tolerance(4e-3, 4e-3),
    torch.bfloat16: Tolerance(3e-2, 3e-2),
}
ROUNDED = "one axis after the other: torch rounds in another order"


def keeps_extent(sample: Sample) -> bool:
    """A factor that is not 1, but leaves the extents as they are."""
    factors = sample.args[2:]
    factor = factors[0] if factors else None
    factor = factor[0] if isinstance(factor, list) else factor
    return factor is not None and (
        int(sample.args[0].shape[-1] * factor) == sample.args[0].shape[-1] and factor != 1
    )


COPIED = differs(
    "small 2-d images are copied where the extents do not change, whatever the factor; larger "
    "ones, and 1-d and 3-d ones of any size, are not: the factor decides here",
    keeps_extent,
)
ONE_WIDE = differs(
    "torch fills an output that is one pixel wide with its first row",
    lambda s: s.args[1] == [2, 1] or (s.args[1] is None and s.args[3] == [0.31, 0.31]),
)
for name in ("upsample_nearest", "_upsample_nearest_exact"):
    for rank in (1, 2, 3):
        packet = getattr(aten, f"{name}{rank}d")
        for overload, by_list in ((packet.default, False), (packet.vec, True)):
            case(
                overload,
                samples=resized(rank, ((),), by_list),
                dtypes=(*FLOATS, torch.uint8),
                fails=[COPIED] if packet is aten.upsample_nearest2d else [],
            )
for name, rank in (
    ("upsample_linear1d", 1),
    ("upsample_bilinear2d", 2),
    ("upsample_trilinear3d", 3),
    ("upsample_bicubic2d", 2),
    ("_upsample_bilinear2d_aa", 2),
    ("_upsample_bicubic2d_aa", 2),
):
    packet = getattr(aten, name)
    for overload, by_list in ((packet.default, False), (packet.vec, True)):
        case(
            overload,
            samples=resized(rank, ((False,), (True,)), by_list),
            dtypes=(torch.float32,) if name.endswith("aa") else FLOATS,
            tolerance=SMOOTH,
            reason=ROUNDED,
            fails=[INTEGER, *([ONE_WIDE] if name.endswith("aa") else [])],
        )


def sampled(rank: int) -> Any:
    def samples(t: TensorMaker) -> Iterator[Sample]:
        x, grid = t(2, 3, *SIZE[:rank]), t(2, *(4, 5, 3)[:rank], rank) * 1.3
        for mode in (0, 1, 2) if rank == 2 else (0, 1):
            for padding in (0, 1, 2):
                for align_corners in (False, True):
                    yield call(x, grid, mode, padding, align_corners)
                    yield call(x[:, :, :1], grid, mode, padding, align_corners)

    return samples


def over_slopes(sample: Sample) -> torch.Tensor:
    """max|x| · (1 + places): a coordinate is off by its size in pixels, times the slope."""
    x = sample.args[0].float()
    return x.abs().max() * (1 + sum(x.shape[2:]))


STEEP = {
    "roundings": {torch.float32: 8, torch.float16: 4, torch.bfloat16: 4},
    "terms": over_slopes,
    "reason": "torch rounds the coordinate to the type; the error is multiplied by the slope",
    "skip": [
        (
            "torch rounds a half coordinate before it looks for the nearest pixel",
            lambda s: s.args[0].dtype != torch.float32 and s.args[2] == 1,
        )
    ],
    "limit": 16,
}
case(aten.grid_sampler_2d.default, samples=sampled(2), **STEEP)
case(aten.grid_sampler_3d.default, samples=sampled(3), **STEEP)
case(
    aten.grid_sampler.default,
    opinfo=("nn.functional.grid_sample",),
    samples=lambda t: [*sampled(2)(t), *sampled(3)(t)],
    **STEEP,
)
case(
    aten.affine_grid_generator.default,
    samples=lambda t: [
        call(t(2, rank, rank + 1), [2, 3, *size[:rank]], align_corners)
        for rank in (2, 3)
        for size in ((4, 5, 3), (1, 4, 2))
        for align_corners in (False, True)
    ],
)
