"""What a call on a transposed array is on the array itself.

`axes` is always such that the call's array is `transpose(base, axes)`.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from torch2mlx.compiler.builder import Call, Value
from torch2mlx.compiler.layers import is_elementwise as is_elementwise_layer
from torch2mlx.compiler.runtime import padding, pointwise, reductions
from torch2mlx.compiler.symbolic import source_of

__all__ = [
    "along_axis",
    "composed",
    "identity",
    "inverse",
    "is_elementwise",
    "is_layout",
    "order_of",
    "reduced",
    "regrouped",
    "subscripted",
]

Moved = tuple[tuple[Any, ...], dict[str, Any], tuple[int, ...]]
"""Arguments for the call on the base (the first is the array's place), and the result's axes."""

_ELEMENTWISE = (
    "abs add arccos arccosh arcsin arcsinh arctan arctan2 arctanh astype bitwise_and "
    "bitwise_invert bitwise_or bitwise_xor ceil clip conj cos cosh degrees divide divmod "
    "equal erf erfinv exp expm1 floor floor_divide greater greater_equal imag isfinite isinf "
    "isnan isneginf isposinf left_shift less less_equal log log10 log1p log2 logaddexp "
    "logical_and logical_not logical_or maximum minimum multiply nan_to_num negative "
    "not_equal ones_like power radians real reciprocal remainder right_shift round rsqrt "
    "sigmoid sign sin sinh sqrt square stop_gradient subtract tan tanh where zeros_like"
)
_ACTIVATIONS = ("gelu", "gelu_approx", "relu", "silu", "softplus")
_FUNCTIONS = {
    *(getattr(mx, name) for name in _ELEMENTWISE.split() if hasattr(mx, name)),
    *(getattr(pointwise, name) for name in pointwise.__all__),
    *(getattr(nn, name) for name in _ACTIVATIONS),
}
_REDUCTIONS = {
    mx.sum, mx.mean, mx.max, mx.min, mx.prod, mx.var, mx.std, mx.any, mx.all, mx.logsumexp,
    reductions.variance,
}  # fmt: skip
_AXIS = {
    mx.concatenate: 1, mx.softmax: 1, mx.cumsum: 1, mx.cumprod: 1, mx.flip: 1, mx.sort: 1,
    mx.split: 2, mx.repeat: 2, mx.roll: 2,
    reductions.softmax: 1, reductions.log_softmax: 1,
    padding.reflect: 1, padding.replicate: 1, padding.wrap: 1,
}  # fmt: skip
"""Functions that work along axes and keep the rank → place of the argument that names them."""


def identity(rank: int) -> tuple[int, ...]:
    """The order that changes nothing."""
    return tuple(range(rank))


def composed(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    """The order that transposing by one and then by the other gives."""
    return tuple(first[a] for a in second)


def inverse(axes: tuple[int, ...]) -> tuple[int, ...]:
    """The order that undoes another."""
    return tuple(axes.index(i) for i in range(len(axes)))


def is_layout(axes: tuple[int, ...]) -> bool:
    """Whether it moves channels from the last place to the second."""
    n = len(axes)
    return n > 2 and axes == (0, n - 1, *range(1, n - 1))


def order_of(call: Call) -> tuple[int, ...] | None:
    """The order of axes that a call gives its array; None if it does something else."""
    if not call.args or not isinstance(call.args[0], Value) or call.kwargs:
        return None
    n = call.args[0].ndim
    if call.function is mx.transpose:
        order = call.args[1] if len(call.args) > 1 else range(n)[::-1]
        return tuple(a % n for a in order)
    if call.function is mx.swapaxes:
        axes = list(range(n))
        i, j = call.args[1] % n, call.args[2] % n
        axes[i], axes[j] = axes[j], axes[i]
        return tuple(axes)
    return None


def is_elementwise(call: Call) -> bool:
    """Whether every element depends on the elements of the arguments at its place."""
    try:
        known = call.function in _FUNCTIONS or is_elementwise_layer(call.function)
        return len(call.outputs) == 1 and not call.sequence and known
    except TypeError:
        return False


def _axes_of(call: Call, place: int) -> Any:
    if "axis" in call.kwargs:
        return call.kwargs["axis"]
    return call.args[place] if len(call.args) > place else None


def _with_axes(call: Call, place: int, new: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if "axis" in call.kwargs:
        return call.args, {**call.kwargs, "axis": new}
    return (*call.args[:place], new, *call.args[place + 1 :]), call.kwargs


def _renumbered(axis: Any, axes: tuple[int, ...]) -> Any:
    if isinstance(axis, int):
        return axes[axis % len(axes)]
    return tuple(axes[a % len(axes)] for a in axis)


def _without(axes: tuple[int, ...], gone: set[int]) -> tuple[int, ...]:
    """The order that is left of the axes when the base loses some."""
    kept = sorted(set(axes) - gone)
    return tuple(kept.index(a) for a in axes if a not in gone)


def along_axis(call: Call, axes: tuple[int, ...]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Arguments of a call that keeps the order of axes."""
    try:
        place = _AXIS.get(call.function)
    except TypeError:
        return None
    if place is None:
        return None
    axis = _axes_of(call, place)
    if call.function is mx.concatenate and axis is None:
        axis = 0
    if axis is None or (call.function is mx.split and isinstance(call.args[1], Value)):
        return None
    if call.function is mx.repeat and isinstance(call.args[1], Value):
        return None
    return _with_axes(call, place, _renumbered(axis, axes))


def reduced(call: Call, axes: tuple[int, ...]) -> Moved | None:
    """A reduction or squeeze, over the axes that the base has in place of the named ones."""
    try:
        if call.function not in _REDUCTIONS and call.function is not mx.squeeze:
            return None
    except TypeError:
        return None
    axis = _axes_of(call, 1)
    if call.function is mx.squeeze and axis is None:
        return None
    keep = call.kwargs.get("keepdims", call.args[2] if len(call.args) > 2 else False)
    if axis is None:
        return None if keep else (call.args, call.kwargs, ())
    new = _renumbered(axis, axes)
    if isinstance(new, tuple):
        new = tuple(sorted(new))
    args, kwargs = _with_axes(call, 1, new)
    if keep:
        return args, kwargs, axes
    gone = {new} if isinstance(new, int) else set(new)
    return args, kwargs, _without(axes, gone)


def subscripted(call: Call, axes: tuple[int, ...]) -> Moved | None:
    """`x[key]` of integers and slices."""
    key = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    if not all(k is Ellipsis or isinstance(k, int | slice) for k in key):
        return None
    n = len(axes)
    if any(k is Ellipsis for k in key):
        place = next(i for i, k in enumerate(key) if k is Ellipsis)
        key = (*key[:place], *(slice(None),) * (n - len(key) + 1), *key[place + 1 :])
    key = (*key, *(slice(None),) * (n - len(key)))
    new: list[Any] = [key[axes.index(i)] for i in range(n)]
    gone = {i for i, k in enumerate(new) if isinstance(k, int)}
    while len(new) > 1 and new[-1] == slice(None):
        new.pop()
    return (call.args[0], tuple(new) if len(new) > 1 else new[0]), {}, _without(axes, gone)


def regrouped(
    call: Call, axes: tuple[int, ...], shape: tuple[str, ...] | None, symbolic: bool
) -> Moved | None:
    """A reshape that merges neighbours of the base, or splits its axes."""
    result = call.outputs[0]
    if call.function is mx.flatten:
        n = len(axes)
        given = dict(zip(("start_axis", "end_axis"), call.args[1:], strict=False)) | call.kwargs
        start, end = given.get("start_axis", 0) % n, given.get("end_axis", -1) % n
        groups = [[i] for i in range(start)] + [list(range(start, end + 1))]
        groups += [[i] for i in range(end + 1, n)]
        order = _order(groups, [1] * len(groups), axes)
        if order is None:
            return None
        first = axes[start]
        return (call.args[0], first, first + end - start), {}, order
    if call.function is not mx.reshape or shape is None or call.kwargs:
        return None
    if symbolic and result.dims is None:
        return None
    new = result.shape
    found = _groups(shape, [source_of(n) for n in new])
    if found is None:
        return None
    groups = [old for old, _ in found]
    order = _order(groups, [len(made) for _, made in found], axes)
    if order is None:
        return None
    return (call.args[0], tuple(new[order.index(i)] for i in range(len(new)))), {}, order


def _groups(old: tuple[str, ...], new: list[str]) -> list[tuple[list[int], list[int]]] | None:
    """Smallest runs of old and new axes with the same number of elements.

    Old axes of extent 1 are in no run, new ones in the run before them, or in the first.
    """
    rows = [i for i, n in enumerate(old) if n != "1"]
    columns = [j for j, n in enumerate(new) if n != "1"]
    found: list[tuple[list[int], list[int]]] = []
    while rows and columns:
        left, right = [rows.pop(0)], [columns.pop(0)]
        if old[left[0]] != new[right[0]] and not _balanced(old, new, left, right, rows, columns):
            return None
        found.append((left, right))
    if rows or columns or not found:
        return None
    starts = [made[0] for _, made in found[1:]] + [len(new)]
    first = 0
    for (_, made), stop in zip(found, starts, strict=True):
        made[:] = range(first, stop)
        first = stop
    return found


def _balanced(
    old: tuple[str, ...],
    new: list[str],
    left: list[int],
    right: list[int],
    rows: list[int],
    columns: list[int],
) -> bool:
    """Take more rows and columns until both sides have as many elements."""
    while True:
        sizes = _product(old, left), _product(new, right)
        if sizes[0] is None or sizes[1] is None:
            # Symbols do not compare: all up to the equal extents at the end is one run.
            count = 0
            for i, j in zip(reversed(rows), reversed(columns), strict=False):
                if old[i] != new[j]:
                    break
                count += 1
            for side, rest in ((left, rows), (right, columns)):
                cut = len(rest) - count
                side += rest[:cut]
                del rest[:cut]
            return True
        if sizes[0] == sizes[1]:
            return True
        shorter, rest = (left, rows) if sizes[0] < sizes[1] else (right, columns)
        if not rest:
            return False
        shorter.append(rest.pop(0))


def _product(extents: Any, places: list[int]) -> int | None:
    result = 1
    for place in places:
        if not extents[place].isdigit():
            return None
        result *= int(extents[place])
    return result


def _order(
    groups: list[list[int]], sizes: list[int], axes: tuple[int, ...]
) -> tuple[int, ...] | None:
    """The order of the result's axes, if every group is one run of the base's axes."""
    base = sorted(axes[i] for group in groups for i in group)
    starts = []
    for group in groups:
        places = [base.index(axes[i]) for i in group]
        if places != list(range(places[0], places[0] + len(places))):
            return None
        starts.append(places[0])
    offsets: dict[int, int] = {}
    total = 0
    for index in sorted(range(len(groups)), key=lambda g: starts[g]):
        offsets[index] = total
        total += sizes[index]
    return tuple(offsets[g] + k for g in range(len(groups)) for k in range(sizes[g]))
