"""Weights that a file stores on a grid which MLX's affine format can express, taken as they are.

Rows of packed weights move like rows of weights: they can be permuted, cut and stacked, as long
as nothing touches the last axis.  So the expression that a port makes of a tensor is repeated on
its packed parts, and no value is dequantized on the way.
"""

from __future__ import annotations

from collections.abc import Callable

from torch2mlx.planning.expressions import Concat, Expr, Reshape, Slice, Transpose
from torch2mlx.quantization.scheme import Scheme
from torch2mlx.sources.base import Checkpoint, Packed

__all__ = ["StoredGrids"]


class StoredGrids:
    """The packed tensors of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._packed = {
            id(checkpoint.state[name]): packed for name, packed in checkpoint.packed.items()
        }

    def of(self, expr: Expr, scheme: Scheme | None) -> Packed | None:
        """The packed form of an expression, if all that it is made of lies on this grid."""
        if scheme is None or not scheme.affine or not self._packed:
            return None
        parts = [
            self._lift(expr, lambda p: p.weight, scheme),
            self._lift(expr, lambda p: p.scales, scheme),
            self._lift(expr, lambda p: p.biases, scheme),
        ]
        weight, scales, biases = parts
        if weight is None or scales is None or biases is None:
            return None
        return Packed(scheme.bits, scheme.group_size, weight, scales, biases)

    def scheme_of(self, expr: Expr) -> Scheme | None:
        """The grid that an expression lies on, or None."""
        for packed in {(p.bits, p.group_size): p for p in self._packed.values()}.values():
            scheme = Scheme(packed.bits, packed.group_size)
            if self.of(expr, scheme) is not None:
                return scheme
        return None

    def _lift(self, expr: Expr, part: Callable[[Packed], Expr], scheme: Scheme) -> Expr | None:
        packed = self._packed.get(id(expr))
        if packed is not None:
            same = (packed.bits, packed.group_size) == (scheme.bits, scheme.group_size)
            return part(packed) if same else None
        if not isinstance(expr, Concat | Reshape | Slice | Transpose):
            return None
        lifted = [self._lift(child, part, scheme) for child in expr.children]
        moved = [child for child in lifted if child is not None]
        if len(moved) != len(lifted):
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
