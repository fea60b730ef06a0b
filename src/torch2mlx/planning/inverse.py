"""Expressions run backwards: from a value of an output tensor to the tensors it came from.

`push` is the inverse of `Expr.read` for movement (transpose, slice, concatenate, reshape, bit
views); functions of one tensor are not undone on the way but remembered, so that a caller can
either apply them to the source (an audit) or apply their numeric inverses to the value
(`restore_state`, which rebuilds a PyTorch state dict from the values of an MLX folder).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from torch2mlx.dtypes import DTYPES
from torch2mlx.planning.expressions import Bits, Concat, Expr, Reshape, Slice, Stored, Transpose
from torch2mlx.planning.functions import Apply, Whole, cast
from torch2mlx.planning.regions import Region, full

__all__ = [
    "Chain",
    "Leaf",
    "NotInvertible",
    "Restored",
    "as_numbers",
    "numbers_before",
    "push",
    "restore_state",
]

Array = np.ndarray[Any, Any]
Chain = tuple[Apply | Bits, ...]

_BLOCK_BYTES = 64 << 20  # float32 bytes of an output that `restore_state` asks for at a time


class NotInvertible(Exception):  # noqa: N818 (a finding for callers to act on, not an error)
    """A node mixes several tensors or elements; its text names the node."""


@dataclass(frozen=True)
class Leaf:
    """A part of a source tensor and what an output holds of it.

    Attributes:
        name: of the checkpoint's tensor, or of the stop (see `push`).
        expr: the tensor or stop.
        region: the part of `expr`, one range an axis, steps positive.
        value: bit view of the shape of `region`: the part after `chain`.
        chain: functions between `expr` and the output, innermost first; empty: moved only.
    """

    name: str
    expr: Expr
    region: Region
    value: Array
    chain: Chain = ()


def push(
    expr: Expr, region: Region, value: Array, stops: Mapping[int, str] | None = None
) -> Iterator[Leaf]:
    """Trace the value of an output region down to the tensors that it came from.

    Args:
        expr: the output.
        region: part of it, one range an axis with a positive step.
        value: its bit view, of the region's shape.  Below an `Apply` values are only moved,
            never reinterpreted, so there any array of that shape will do.
        stops: id of an expression → name; such expressions are leaves, whatever is below.

    Yields:
        the leaves; together they cover `value` once.

    Raises:
        NotInvertible: a function of several tensors, a broadcast, a function that needs a whole
            tensor, or a bit view that the region cuts inside of an element.
    """
    return _push(expr, region, value, (), stops or {})


def _push(
    expr: Expr, region: Region, value: Array, chain: Chain, stops: Mapping[int, str]
) -> Iterator[Leaf]:
    if not value.size:
        return
    if id(expr) in stops:
        yield Leaf(stops[id(expr)], expr, region, value, chain)
    elif isinstance(expr, Stored):
        yield Leaf(expr.name, expr, region, value, chain)
    elif isinstance(expr, Transpose):
        order = tuple(expr.axes.index(a) for a in range(len(expr.axes)))
        inner = expr.operand_region(region)
        yield from _push(expr.operand, inner, value.transpose(order), chain, stops)
    elif isinstance(expr, Slice):
        inner, value = _ascending(expr.operand_region(region), value)
        yield from _push(expr.operand, inner, value, chain, stops)
    elif isinstance(expr, Concat):
        before = (slice(None),) * expr.axis
        for operand, inner, where in expr.pieces(region):
            yield from _push(operand, inner, value[(*before, where)], chain, stops)
    elif isinstance(expr, Reshape) and _unit_axes_only(expr):
        inner = _without_unit_axes(expr, region)
        value = value.reshape(tuple(len(r) for r in inner))
        yield from _push(expr.operand, inner, value, chain, stops)
    elif isinstance(expr, Reshape):
        for part, block in _row_major_boxes(expr, region, value):
            extents, pieces, _ = expr.pieces(part)
            buffer = block.reshape(extents)
            for inner, where in pieces:
                piece = buffer[where].reshape(tuple(len(r) for r in inner))
                yield from _push(expr.operand, inner, piece, chain, stops)
    elif isinstance(expr, Bits):
        inner, value, chain = _before_view(expr, region, value, chain)
        yield from _push(expr.operand, inner, value, chain, stops)
    elif isinstance(expr, Apply):
        tensors = [o for o in expr.operands if not _is_constant(o)]
        if not tensors:
            raise NotInvertible(f"{expr.name} of an array of the port's own")
        operand = tensors[0]
        if len(tensors) > 1 or operand.size != expr.size:
            what = "broadcasts" if len(tensors) == 1 else "joins several tensors"
            raise NotInvertible(f"{expr.name} {what}")
        inner = expr.operand_region(operand, region)
        value = value.reshape(tuple(len(r) for r in inner))
        step = expr
        # Values are moved on before a chain is undone, so what depends on the place must be last.
        if expr.inverse_in is not None and (id(operand) in stops or isinstance(operand, Stored)):
            step = replace(expr, inverse=expr.inverse_in(region))
        yield from _push(operand, inner, value, (step, *chain), stops)
    else:
        raise NotInvertible(f"{getattr(expr, 'name', type(expr).__name__)} needs whole tensors")


def _is_constant(expr: Expr) -> bool:
    """Whether an operand is an array of the port's own."""
    return isinstance(expr, Whole) and not expr.operands


def _ascending(region: Region, value: Array) -> tuple[Region, Array]:
    """The same elements with positive steps only."""
    if all(r.step > 0 for r in region):
        return region, value
    flip = tuple(slice(None, None, -1 if r.step < 0 else 1) for r in region)
    return tuple(r[::-1] if r.step < 0 else r for r in region), value[flip]


def _unit_axes_only(expr: Reshape) -> bool:
    """Whether only axes of extent 1 come and go, as in a stack of experts."""
    return [n for n in expr.shape if n != 1] == [n for n in expr.operand.shape if n != 1]


def _without_unit_axes(expr: Reshape, region: Region) -> Region:
    kept = iter([r for n, r in zip(expr.shape, region, strict=True) if n != 1])
    return tuple(range(1) if n == 1 else next(kept) for n in expr.operand.shape)


def _row_major_boxes(expr: Reshape, region: Region, value: Array) -> Iterator[tuple[Region, Array]]:
    """Cut a region until `Reshape.pieces` covers each part without gaps.

    A part has no gaps if, in every group of axes that is merged or split together, the axes
    after the first one longer than an index are whole.
    """
    hull = expr.hull(region)
    if hull == tuple(len(r) for r in region):
        yield region, value
        return
    wrong = next(a for a, r in enumerate(region) if hull[a] != len(r))
    # An axis that `hull` took whole is out of order because of an earlier, longer axis.
    if region[wrong].step == 1 or len(region[wrong]) == 1:
        wrong = next(a for a in reversed(range(wrong)) if len(region[a]) > 1)
    for i, index in enumerate(region[wrong]):
        part = (*region[:wrong], range(index, index + 1), *region[wrong + 1 :])
        inner = value[(slice(None),) * wrong + (slice(i, i + 1),)]
        yield from _row_major_boxes(expr, part, inner)


def _before_view(
    expr: Bits, region: Region, value: Array, chain: Chain
) -> tuple[Region, Array, Chain]:
    """Region, value and chain below a bit view."""
    operand = expr.operand
    new, old = expr.dtype.itemsize, operand.dtype.itemsize
    if new == old:
        # Under a function the value is no bit pattern of this type: the view joins the chain.
        if chain:
            return region, value, (expr, *chain)
        return region, _viewed(value, operand.dtype.numpy), chain
    if chain:
        raise NotInvertible(f"{chain[0]} follows a bit view {operand.dtype} → {expr.dtype}")
    last = region[-1]
    if last.step != 1 and len(last) > 1:
        raise NotInvertible(f"bit view {operand.dtype} → {expr.dtype} of separate elements")
    first, end = last.start * new, (last[-1] + 1) * new
    if first % old or end % old:
        raise NotInvertible(f"bit view {operand.dtype} → {expr.dtype} cut inside of an element")
    inner = (*region[:-1], range(first // old, end // old))
    return inner, _viewed(np.ascontiguousarray(value), operand.dtype.numpy), chain


def _viewed(value: Array, dtype: np.dtype[Any]) -> Array:
    return value.reshape(1).view(dtype).reshape(()) if value.ndim == 0 else value.view(dtype)


def as_numbers(expr: Expr) -> Expr:
    """`expr` under a function to float32: its values are numbers to `push`, not bit patterns."""
    float32 = DTYPES["F32"]
    if expr.dtype != float32:
        return cast(expr, float32)
    same: Callable[[Any], Any] = lambda x: x  # noqa: E731
    return Apply("as float32", same, (expr,), float32, expr.shape, inverse=same, forward=same)


def numbers_before(chain: Chain, value: Array) -> Array:
    """Undo a chain of functions numerically, in float32 on the CPU.

    Args:
        chain: as in `Leaf`.
        value: float32 results.

    Returns:
        float32 numbers that the chain maps to `value`, up to rounding.

    Raises:
        NotInvertible: a step has no numeric inverse.
    """
    import torch

    array = np.ascontiguousarray(value)
    result = torch.from_numpy(array if array.flags.writeable else array.copy())
    for step in reversed(chain):
        if not isinstance(step, Apply) or step.inverse is None:
            what = step.name if isinstance(step, Apply) else f"bit view to {step.dtype}"
            raise NotInvertible(f"{what} has no numeric inverse")
        result = step.inverse(result)
    numbers: Array = result.float().numpy()
    return numbers


@dataclass(frozen=True)
class Restored:
    """A checkpoint tensor rebuilt from outputs.

    Attributes:
        name: as in the checkpoint's state.
        values: float32, of the tensor's shape; None where nothing could be rebuilt.
        covered: True where an output holds the element; None where all are covered.
        reason: why elements are missing; "" where all are covered.
    """

    name: str
    values: Array | None
    covered: Array | None = None
    reason: str = ""


def restore_state(
    outputs: Mapping[str, Expr],
    read_output: Callable[[str, int, int], Array],
    state: Mapping[str, Expr],
    *,
    block_bytes: int = _BLOCK_BYTES,
) -> Iterator[Restored]:
    """Rebuild a checkpoint's tensors from the values of an MLX folder, one at a time.

    So PyTorch can run with exactly the weights that MLX has, quantization error included.

    Args:
        outputs: the MLX tensors as expressions over those of `state`.
        read_output: (name, start, stop) → float32 values of rows [start, stop) along axis 0
            (a 0-d tensor: `(name, 0, 1)` → shape ()).
        state: the checkpoint's tensors; the very expression objects that `outputs` contain.
        block_bytes: float32 bytes of one call of `read_output`, where a row is not larger.

    Yields:
        one `Restored` for each name of `state`, in its order.  Where several outputs hold an
        element (tied tensors), the first one counts.  Memory: the tensor, its coverage (one
        byte an element) and a block.
    """
    stops: dict[int, str] = {}
    for name, expr in state.items():
        stops.setdefault(id(expr), name)
    where = _blocks_of_leaves(outputs, stops, block_bytes)
    for name, expr in state.items():
        yield _restore(name, expr, outputs, read_output, where.get(stops[id(expr)], []), stops)


def _restore(
    name: str,
    expr: Expr,
    outputs: Mapping[str, Expr],
    read_output: Callable[[str, int, int], Array],
    blocks: list[tuple[str, Region]],
    stops: Mapping[int, str],
) -> Restored:
    values = np.zeros(expr.shape, np.float32)
    covered = np.zeros(expr.shape, np.bool_)
    missing = expr.size
    reason = "no output holds it"
    for output, region in blocks:
        if not missing:
            break
        rows = (region[0].start, region[0].stop) if region else (0, 1)
        try:
            for leaf in push(
                as_numbers(outputs[output]), region, read_output(output, *rows), stops
            ):
                if leaf.expr is not expr:
                    continue
                box: tuple[Any, ...] = (*(slice(r.start, r.stop, r.step) for r in leaf.region), ...)
                new = ~covered[box]
                np.copyto(values[box], numbers_before(leaf.chain, leaf.value), where=new)
                covered[box] = True
                missing -= int(np.count_nonzero(new))
        except NotInvertible as error:
            reason = f"{output}: {error}"
    if not missing:
        return Restored(name, values)
    return Restored(name, values if covered.any() else None, covered, reason)


def _blocks_of_leaves(
    outputs: Mapping[str, Expr], stops: Mapping[int, str], block_bytes: int
) -> dict[str, list[tuple[str, Region]]]:
    """The row blocks of outputs that hold something of each stop, in order."""
    found: dict[str, list[tuple[str, Region]]] = {}
    for output, expr in outputs.items():
        row_bytes = max(1, prod(expr.shape[1:]) * 4)
        step = max(1, block_bytes // row_bytes)
        starts = range(0, expr.shape[0], step) if expr.shape else range(1)
        for start in starts:
            region = full(expr.shape)
            if expr.shape:
                region = (range(start, min(start + step, expr.shape[0])), *region[1:])
            for name in dict.fromkeys(_names_under(expr, region, stops)):
                found.setdefault(name, []).append((output, region))
    return found


def _names_under(expr: Expr, region: Region, stops: Mapping[int, str]) -> Iterator[str]:
    """Names of the stops that a region of an output depends on."""
    if id(expr) in stops:
        yield stops[id(expr)]
    elif isinstance(expr, Concat):
        for operand, inner, _ in expr.pieces(region):
            yield from _names_under(operand, inner, stops)
    elif isinstance(expr, Reshape):
        for inner, _ in expr.pieces(region)[1]:
            yield from _names_under(expr.operand, inner, stops)
    elif isinstance(expr, Transpose | Slice | Bits):
        inner = expr.operand_region(region)
        if isinstance(expr, Slice):
            inner = tuple(r[::-1] if r.step < 0 else r for r in inner)
        yield from _names_under(expr.operand, inner, stops)
    elif isinstance(expr, Apply):
        for operand in expr.operands:
            yield from _names_under(operand, expr.operand_region(operand, region), stops)
    else:
        for operand in expr.children:
            yield from _names_under(operand, full(operand.shape), stops)
