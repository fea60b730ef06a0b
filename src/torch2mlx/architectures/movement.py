"""MLX functions that only move elements, as exact nodes of the expression language."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from torch2mlx.dtypes import dtype_from_mx
from torch2mlx.errors import UnsupportedError
from torch2mlx.planning.expressions import Bits, Concat, Expr, Reshape, Slice, Transpose, stack
from torch2mlx.planning.functions import cast

__all__ = ["MOVEMENT", "index", "transpose"]


def _axis(axis: int, ndim: int) -> int:
    return axis + ndim if axis < 0 else axis


def transpose(a: Expr, *axes: Any) -> Expr:
    """`mlx.core.transpose`."""
    if len(axes) == 1 and not isinstance(axes[0], int):
        axes = tuple(axes[0])
    order = tuple(_axis(i, len(a.shape)) for i in axes) or tuple(reversed(range(len(a.shape))))
    return Transpose(a, order)


def _swapaxes(a: Expr, axis1: int, axis2: int) -> Expr:
    order = list(range(len(a.shape)))
    i, j = _axis(axis1, len(a.shape)), _axis(axis2, len(a.shape))
    order[i], order[j] = order[j], order[i]
    return Transpose(a, tuple(order))


def _moveaxis(a: Expr, source: int, destination: int) -> Expr:
    order = [i for i in range(len(a.shape)) if i != _axis(source, len(a.shape))]
    order.insert(_axis(destination, len(a.shape)), _axis(source, len(a.shape)))
    return Transpose(a, tuple(order))


def _reshape(a: Expr, *shape: Any) -> Expr:
    if len(shape) == 1 and not isinstance(shape[0], int):
        shape = tuple(shape[0])
    known = prod(n for n in shape if n != -1)
    resolved = tuple(a.size // known if n == -1 else n for n in shape)
    if prod(resolved) != a.size:
        raise ValueError(f"cannot reshape {a.shape} into {shape}")
    return a if resolved == a.shape else Reshape(a, resolved)


def _flatten(a: Expr, start_axis: int = 0, end_axis: int = -1) -> Expr:
    i, j = _axis(start_axis, len(a.shape)), _axis(end_axis, len(a.shape))
    return _reshape(a, (*a.shape[:i], prod(a.shape[i : j + 1]), *a.shape[j + 1 :]))


def _squeeze(a: Expr, axis: int | Sequence[int] | None = None) -> Expr:
    if axis is None:
        gone = {i for i, n in enumerate(a.shape) if n == 1}
    else:
        gone = {_axis(i, len(a.shape)) for i in ([axis] if isinstance(axis, int) else axis)}
    return _reshape(a, tuple(n for i, n in enumerate(a.shape) if i not in gone))


def _expand_dims(a: Expr, axis: int | Sequence[int]) -> Expr:
    axes = [axis] if isinstance(axis, int) else list(axis)
    shape = list(a.shape)
    for i in sorted(_axis(i, len(a.shape) + len(axes)) for i in axes):
        shape.insert(i, 1)
    return _reshape(a, tuple(shape))


def index(a: Expr, key: Any) -> Expr:
    """`array[key]`.

    Raises:
        UnsupportedError: it is indexed by an array, or backwards.
    """
    items = list(key) if isinstance(key, tuple) else [key]
    if Ellipsis in items:
        at = items.index(Ellipsis)
        given = sum(i is not None for i in items) - 1
        items[at : at + 1] = [slice(None)] * (len(a.shape) - given)
    ranges: list[range] = []
    shape: list[int] = []
    for item in items:
        if item is None:
            shape.append(1)
            continue
        extent = a.shape[len(ranges)]
        if isinstance(item, int):
            ranges.append(range(extent)[item : item + 1 or None])
            continue
        if not isinstance(item, slice) or (item.step or 1) < 0:
            raise UnsupportedError(f"this port indexes weights by {type(item).__name__}")
        ranges.append(range(extent)[item])
        shape.append(len(ranges[-1]))
    for extent in a.shape[len(ranges) :]:
        ranges.append(range(extent))
        shape.append(extent)
    whole = all(part == range(extent) for part, extent in zip(ranges, a.shape, strict=True))
    return _reshape(a if whole else Slice(a, tuple(ranges)), tuple(shape))


def _split(a: Expr, indices_or_sections: int | Sequence[int], axis: int = 0) -> list[Expr]:
    axis = _axis(axis, len(a.shape))
    extent = a.shape[axis]
    if isinstance(indices_or_sections, int):
        step = extent // indices_or_sections
        bounds = [i * step for i in range(indices_or_sections)] + [extent]
    else:
        bounds = [0, *indices_or_sections, extent]
    before = (slice(None),) * axis
    return [
        index(a, (*before, slice(lo, hi))) for lo, hi in zip(bounds[:-1], bounds[1:], strict=True)
    ]


def _concatenate(arrays: Sequence[Expr], axis: int = 0) -> Expr:
    parts = tuple(arrays)
    return Concat(parts, _axis(axis, len(parts[0].shape)))


def _stack(arrays: Sequence[Expr], axis: int = 0) -> Expr:
    shapes = {a.shape for a in arrays}
    if len(shapes) > 1:
        raise ValueError(f"cannot stack tensors of shapes {sorted(shapes)}")
    return stack(arrays, _axis(axis, len(arrays[0].shape) + 1))


def _astype(a: Expr, dtype: Any) -> Expr:
    return cast(a, dtype_from_mx(dtype))


def _view(a: Expr, dtype: Any) -> Expr:
    return Bits(a, dtype_from_mx(dtype))


def _contiguous(a: Expr, allow_col_major: bool = False) -> Expr:
    return a


MOVEMENT: dict[str, Callable[..., Any]] = {
    "transpose": transpose,
    "swapaxes": _swapaxes,
    "moveaxis": _moveaxis,
    "reshape": _reshape,
    "flatten": _flatten,
    "squeeze": _squeeze,
    "expand_dims": _expand_dims,
    "split": _split,
    "concatenate": _concatenate,
    "stack": _stack,
    "astype": _astype,
    "view": _view,
    "contiguous": _contiguous,
}
"""By the name of the function of `mlx.core`, whose arguments each of them takes."""
