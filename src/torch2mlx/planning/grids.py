"""Weights that a file stores on a grid which a format of MLX can express, taken as they are.

Rows of packed weights move like rows of weights: they can be permuted, cut and stacked, as long
as nothing touches the last axis.  So the expression that a port makes of a tensor is repeated on
its packed parts, and no value is dequantized on the way.
"""

from __future__ import annotations

from functools import cached_property

from torch2mlx.planning.expressions import Concat, Expr, Reshape, Slice, Transpose
from torch2mlx.quantization.scheme import Scheme
from torch2mlx.sources.base import Checkpoint, Packed

__all__ = ["StoredGrids"]


class StoredGrids:
    """The packed tensors of a checkpoint; which ones is found out when it is first asked."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    @cached_property
    def _packed(self) -> dict[int, Packed]:
        found = {}
        for name, packed in self._checkpoint.packed.items():
            expr = self._checkpoint.state[name]
            found[id(expr.children[0] if packed.transposed else expr)] = packed
        return found

    def of(self, expr: Expr, scheme: Scheme | None) -> Packed | None:
        """The packed form of an expression, if all that it is made of lies on this grid."""
        if scheme is None or not self._packed:
            return None
        moved = self._transposes_inward(expr)
        parts = {
            suffix: self._lift(moved, suffix, scheme)
            for suffix in ("weight", "scales", *(("biases",) if scheme.affine else ()))
        }
        weight, scales, biases = (parts.get(s) for s in ("weight", "scales", "biases"))
        if weight is None or scales is None or (scheme.affine and biases is None):
            return None
        return Packed(scheme.bits, scheme.group_size, weight, scales, biases, scheme.mode)

    def scheme_of(self, expr: Expr) -> Scheme | None:
        """The grid that an expression lies on, or None."""
        for packed in {(p.bits, p.group_size, p.mode): p for p in self._packed.values()}.values():
            scheme = Scheme(packed.bits, packed.group_size, packed.mode)
            if self.of(expr, scheme) is not None:
                return scheme
        return None

    def _lift(self, expr: Expr, part: str, scheme: Scheme) -> Expr | None:
        packed = self._packed.get(id(expr))
        if packed is not None:
            same = Scheme(packed.bits, packed.group_size, packed.mode) == scheme
            return packed.parts[part] if same else None
        if not isinstance(expr, Concat | Reshape | Slice | Transpose):
            return None
        lifted = [self._lift(child, part, scheme) for child in expr.children]
        moved = [child for child in lifted if child is not None]
        if len(moved) != len(lifted) or len({m.dtype for m in moved}) > 1:
            return None
        last = len(expr.shape) - 1
        if isinstance(expr, Concat) and expr.axis != last:
            return Concat(tuple(moved), expr.axis)
        if isinstance(expr, Transpose) and expr.axes[last] == last:
            return Transpose(moved[0], expr.axes)
        if isinstance(expr, Reshape) and expr.shape[-1:] == expr.operand.shape[-1:]:
            return Reshape(moved[0], (*expr.shape[:-1], moved[0].shape[-1]))
        if isinstance(expr, Slice) and len(expr.ranges[last]) == expr.operand.shape[last]:
            return Slice(moved[0], (*expr.ranges[:-1], range(moved[0].shape[-1])))
        return None

    def _transposes_inward(self, expr: Expr) -> Expr:
        """The same tensor with its transposes below cuts and stacks, where two of them may cancel.

        Experts that a checkpoint holds as [experts, in, out] are packed along what a port, after a
        transpose of its own, has as the last axis.
        """
        if id(expr) in self._packed:
            return expr
        if not isinstance(expr, Transpose):
            if isinstance(expr, Slice):
                return Slice(self._transposes_inward(expr.operand), expr.ranges)
            if isinstance(expr, Concat):
                return Concat(tuple(map(self._transposes_inward, expr.operands)), expr.axis)
            if isinstance(expr, Reshape):
                return Reshape(self._transposes_inward(expr.operand), expr.shape)
            return expr
        inner, axes = expr.operand, expr.axes
        if id(inner) in self._packed:
            return expr
        if isinstance(inner, Transpose):
            combined = tuple(inner.axes[a] for a in axes)
            if combined == tuple(range(len(axes))):
                return self._transposes_inward(inner.operand)
            return self._transposes_inward(Transpose(inner.operand, combined))
        if isinstance(inner, Slice):
            below = self._transposes_inward(Transpose(inner.operand, axes))
            return Slice(below, tuple(inner.ranges[a] for a in axes))
        if isinstance(inner, Concat):
            parts = (self._transposes_inward(Transpose(o, axes)) for o in inner.operands)
            return Concat(tuple(parts), axes.index(inner.axis))
        return expr
