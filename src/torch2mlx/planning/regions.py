"""Regions of tensors, one `range` an axis, and how they lie in row-major order."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

__all__ = [
    "Region",
    "as_slices",
    "flat_hull",
    "flat_pieces",
    "full",
    "hull_extents",
    "lengths",
    "reshape_groups",
]

Region = tuple[range, ...]


def full(shape: Sequence[int]) -> Region:
    """The region that covers a whole tensor."""
    return tuple(range(n) for n in shape)


def lengths(region: Region) -> tuple[int, ...]:
    """Extents of a region: the shape of its values."""
    return tuple(len(r) for r in region)


def as_slices(region: Region) -> tuple[slice, ...]:
    """The region as an index of a numpy array."""
    return tuple(slice(r.start, r.stop, r.step) for r in region)


def reshape_groups(
    old: Sequence[int], new: Sequence[int]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Pair runs of axes of two shapes of equal size, as finely as their products allow.

    (2, 3, 4) → (6, 4) gives [((0, 1), (0,)), ((2,), (1,))]: axis indexes of old and new.
    """
    groups: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left: list[int] = []
        right: list[int] = []
        a = b = 1
        while True:
            if a == b and left and right:
                break
            if (a <= b and i < len(old)) or j >= len(new):
                if i >= len(old):
                    break
                a *= old[i]
                left.append(i)
                i += 1
            else:
                b *= new[j]
                right.append(j)
                j += 1
        groups.append((tuple(left), tuple(right)))
    return groups


def flat_pieces(shape: Sequence[int], lo: int, hi: int) -> list[tuple[Region, int, int]]:
    """Cut the flat range [lo, hi) of a tensor into boxes: (region, its flat lo, its flat hi)."""
    if lo >= hi:
        return []
    if len(shape) <= 1:
        return [((range(lo, hi),) if shape else (), lo, hi)]
    inner = prod(shape[1:])
    pieces: list[tuple[Region, int, int]] = []
    row = lo // inner
    if lo % inner or hi - lo < inner:
        stop = min(hi, (row + 1) * inner)
        for region, a, b in flat_pieces(shape[1:], lo - row * inner, stop - row * inner):
            pieces.append(((range(row, row + 1), *region), a + row * inner, b + row * inner))
        lo, row = stop, row + 1
    last = hi // inner
    if lo < last * inner:
        pieces.append(((range(row, last), *full(shape[1:])), lo, last * inner))
        lo = last * inner
    if lo < hi:
        for region, a, b in flat_pieces(shape[1:], lo - last * inner, hi - last * inner):
            pieces.append(((range(last, last + 1), *region), a + last * inner, b + last * inner))
    return pieces


def flat_hull(shape: Sequence[int], region: Region) -> tuple[int, int, Region]:
    """Smallest flat range that holds a box, and the box inside of it.

    Axes up to the first that is longer than one index stay exact; later ones are taken whole.
    """
    lo, hi = 0, prod(shape)
    inside: list[range] = []
    exact = True
    for axis, (extent, r) in enumerate(zip(shape, region, strict=True)):
        if not exact:
            inside.append(r)
            continue
        inner = prod(shape[axis + 1 :])
        first, last = (r.start, r[-1]) if r else (0, -1)
        lo, hi = lo + first * inner, lo + (last + 1) * inner
        inside.append(range(0, last - first + 1, r.step))
        exact = extent == 1 or last == first
    return lo, hi, tuple(inside)


def hull_extents(shape: Sequence[int], region: Region) -> tuple[int, ...]:
    """Extents of the box that `flat_hull` spans."""
    extents = []
    exact = True
    for extent, r in zip(shape, region, strict=True):
        span = r[-1] - r.start + 1 if r else 0
        extents.append(span if exact else extent)
        exact = exact and (extent == 1 or span == 1)
    return tuple(extents)
