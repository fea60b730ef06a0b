"""A weight that a file holds in few bits: its values, and the format of MLX that can take it.

Values are exact in float32: an integer or a small float times its scale.  What a library computes
from the same file is that number rounded to the library's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch2mlx.dtypes import DTYPES, DType
from torch2mlx.planning.computed import Computed
from torch2mlx.planning.expressions import Expr, Reader, Transpose
from torch2mlx.sources.base import Packed

__all__ = ["Grids", "PackedWeight", "Unpacked", "group_size_of"]

MLX_GROUPS = (128, 64, 32)


@dataclass(frozen=True)
class PackedWeight:
    """One weight.

    Attributes:
        value: float32 values.
        scale_dtype: given a reader, the smallest dtype in which MLX's scales and biases are exact;
            None where no format of MLX has the weight's values.
        grid: given that dtype, the tensors of MLX; they belong to `value`.
        transposed: the checkpoint's tensor has the last two axes of `value` exchanged.
    """

    value: Computed
    scale_dtype: Callable[[Reader], DType | None] = lambda _: None
    grid: Callable[[DType], Packed] | None = None
    transposed: bool = False

    @property
    def tensor(self) -> Expr:
        """The checkpoint's tensor."""
        if not self.transposed:
            return self.value
        axes = tuple(range(len(self.value.shape)))
        return Transpose(self.value, (*axes[:-2], axes[-1], axes[-2]))


@dataclass
class Unpacked:
    """What a format found in a state.

    Attributes:
        weights: by the names of the tensors that they become.
        consumed: names of stored tensors that belong to them.
        problems: what does not fit, one line each.
        notes: what a user should know.
    """

    weights: dict[str, PackedWeight] = field(default_factory=dict)
    consumed: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Grids(Mapping[str, Packed]):
    """The weights that formats of MLX can take exactly; scales and zero points are read for it.

    Scales and biases of all affine weights share a dtype, so that experts can be stacked.

    Args:
        weights: by name.
        reader: of the stored tensors.
    """

    def __init__(self, weights: Mapping[str, PackedWeight], reader: Reader) -> None:
        self._weights = weights
        self._reader = reader

    @cached_property
    def _found(self) -> dict[str, Packed]:
        dtypes = {
            name: dtype
            for name, weight in self._weights.items()
            if weight.grid is not None and (dtype := weight.scale_dtype(self._reader)) is not None
        }
        floating = {d.name for d in dtypes.values() if d.floating}
        shared = DTYPES[floating.pop()] if len(floating) == 1 else DTYPES["F32"]
        result = {}
        for name, dtype in dtypes.items():
            make = self._weights[name].grid
            assert make is not None
            result[name] = make(shared if dtype.floating else dtype)
        return result

    def __getitem__(self, name: str) -> Packed:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def group_size_of(group: int, width: int) -> int | None:
    """The largest group of MLX's that divides both a stored group and the rows, or None."""
    return next((size for size in MLX_GROUPS if group % size == 0 and width % size == 0), None)
