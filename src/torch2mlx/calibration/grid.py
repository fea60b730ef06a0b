"""The values that a format can store, in torch: candidates for scales, rounding, and back.

Matrices lie transposed here, `[columns, rows]`: a column of weights, which is what the solver
steps through, is then one contiguous line.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from torch2mlx.dtypes import DType
from torch2mlx.quantization.floats import small_float_values
from torch2mlx.quantization.scheme import Scheme

if TYPE_CHECKING:
    import torch

__all__ = ["Grid", "Steps"]

_SHRINKS = 14
_SMALLEST_SHRINK = 0.55
_SMALLEST_SCALE = 1e-7


@dataclass(frozen=True)
class Steps:
    """Scales and biases of the groups of one group of columns.

    Attributes:
        scale: float32 [rows].
        bias: float32 [rows]; zeros in the modes that have none.
    """

    scale: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True)
class Grid:
    """Rounding into one format.

    Attributes:
        scheme: the format.
        dtype: of affine scales and biases.
    """

    scheme: Scheme
    dtype: DType

    @property
    def top(self) -> int:
        """The largest code of an affine format."""
        return int(2**self.scheme.bits - 1)

    def nearest(self, values: torch.Tensor, steps: Steps) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (float32) of the nearest representable values, and those values.

        Args:
            values: float32 [..., rows].
            steps: of these rows.
        """
        if self.scheme.affine:
            codes = ((values - steps.bias) / steps.scale).round_().clamp_(0, self.top)
            return codes, codes * steps.scale + steps.bias
        import torch

        elements, order, midpoints = (t.to(values.device) for t in self._elements)
        place = torch.bucketize(values / steps.scale, midpoints)
        return order[place], elements[place] * steps.scale

    def values(self, codes: torch.Tensor, steps: Steps) -> torch.Tensor:
        """The numbers that codes (float32 [..., rows]) stand for."""
        if self.scheme.affine:
            return codes * steps.scale + steps.bias
        import torch

        table = torch.from_numpy(self._table).to(codes.device)
        return table[codes.long()] * steps.scale

    def search(self, values: torch.Tensor, weight: torch.Tensor) -> Steps:
        """Scales and biases with the least weighted squared error.

        Both ends of each group's range are drawn in step by step; for the affine format the best
        range is then refined by least squares with its codes held fixed.

        Args:
            values: float32 [group, rows].
            weight: float32 [group], of the squared error of each column.
        """
        import torch

        best, *others = self._candidates(values)
        least = self._error(values, weight, best)
        for steps in others:
            error = self._error(values, weight, steps)
            better = error < least
            best = Steps(
                torch.where(better, steps.scale, best.scale),
                torch.where(better, steps.bias, best.bias),
            )
            least = torch.where(better, error, least)
        if not self.scheme.affine:
            return best
        for _ in range(2):
            refined = self._refined(values, weight, best)
            better = self._error(values, weight, refined) < least
            best = Steps(
                torch.where(better, refined.scale, best.scale),
                torch.where(better, refined.bias, best.bias),
            )
            least = torch.minimum(least, self._error(values, weight, best))
        return best

    def stored(self, values: torch.Tensor) -> torch.Tensor:
        """Affine scales or biases as their dtype holds them, in float32."""
        import torch

        return values.to(getattr(torch, self.dtype.torch_name)).float()

    def _candidates(self, values: torch.Tensor) -> list[Steps]:
        import torch

        if self.scheme.affine:
            low, high = values.amin(0), values.amax(0)
            found = []
            for shrink in np.linspace(1.0, _SMALLEST_SHRINK, _SHRINKS):
                scale = ((high - low) * (float(shrink) / self.top)).clamp_min(_SMALLEST_SCALE)
                found.append(self.steps(scale, low * float(shrink)))
            return found
        largest = values.abs().amax(0)
        zero = torch.zeros_like(largest)
        peak = float(np.nanmax(self._table))
        ideal = (largest / peak).clamp_min(2.0**-100)
        if self.scheme.mode == "nvfp4":
            return [
                Steps(self._scale_code(ideal * float(shrink))[1], zero)
                for shrink in np.linspace(1.25, 0.6, 16)
            ]
        exponent = torch.ceil(torch.log2(ideal))
        return [Steps(torch.exp2(exponent + shift), zero) for shift in (0, -1, 1)]

    def steps(self, scale: torch.Tensor, bias: torch.Tensor) -> Steps:
        """Affine scales and biases as they are stored."""
        return Steps(_nonzero(self.stored(scale)), self.stored(bias))

    def _refined(self, values: torch.Tensor, weight: torch.Tensor, steps: Steps) -> Steps:
        """Weighted least squares of values on codes."""
        codes, _ = self.nearest(values, steps)
        w = weight[:, None] / weight.sum()
        mean_code, mean_value = (w * codes).sum(0), (w * values).sum(0)
        centred = codes - mean_code
        spread = (w * centred.square()).sum(0)
        slope = (w * centred * (values - mean_value)).sum(0) / spread.clamp_min(1e-12)
        slope = slope.where(spread > 1e-6, steps.scale)
        return self.steps(slope, mean_value - slope * mean_code)

    def _error(self, values: torch.Tensor, weight: torch.Tensor, steps: Steps) -> torch.Tensor:
        _, rounded = self.nearest(values, steps)
        return weight @ rounded.sub_(values).square_()

    def _scale_code(self, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """E4M3 bytes of positive scales, and their values."""
        import torch

        table = torch.from_numpy(small_float_values(3, 8)[:127].copy()).to(scale.device)
        midpoints = (table[1:] + table[:-1]) / 2
        place = torch.bucketize(scale, midpoints).clamp_min(1)
        return place, table[place]

    def scale_bytes(self, scale: torch.Tensor) -> torch.Tensor:
        """The stored bytes of scales of a floating-point mode: uint8."""
        import torch

        if self.scheme.mode == "nvfp4":
            return self._scale_code(scale)[0].to(torch.uint8)
        return (torch.log2(scale).round() + 127).to(torch.uint8)

    @cached_property
    def _table(self) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        """Values of the element codes of a floating-point mode."""
        mode = self.scheme.mode
        return small_float_values(3, 8) if mode == "mxfp8" else small_float_values(1, 4)

    @cached_property
    def _elements(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(values in ascending order, their codes as float32, midpoints between them)."""
        import torch

        table = self._table
        codes = [c for c in np.argsort(table, kind="stable") if np.isfinite(table[c])]
        # Of the two zeros the positive one is stored.
        codes = [c for c in codes if table[c] != 0 or c == 0]
        values = torch.from_numpy(table[codes].copy())
        return values, torch.tensor(codes, dtype=torch.float32), (values[1:] + values[:-1]) / 2


def _nonzero(scale: torch.Tensor) -> torch.Tensor:
    return scale.where(scale != 0, scale.new_tensor(_SMALLEST_SCALE))
