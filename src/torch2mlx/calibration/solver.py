"""The codes, scales and biases of one matrix that change its products least.

With calibration inputs X of the quantized model and X' of the original, the matrix W' with rows
on the grid should make X W'^T equal to X' W^T.  That error is, up to a constant, the quadratic
form (W' - V) H (W' - V)^T with H = X^T X and the target V = W X'^T X H^-1: what the layers before
have lost is made good here (GPTAQ, arXiv 2504.02692; Qronos, arXiv 2505.11695).

It is brought down in three ways:
- columns are rounded one after the other, each error being taken over by the columns that are
  still free, with a range search for each group as it is reached (GPTQ, arXiv 2210.17323);
- scales and biases are set to their least-squares solution under H, codes held fixed;
- codes are revisited by coordinate descent, each set to its best value given all others.
The last two alternate; none of them can raise the error, but for the rounding of scales.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch2mlx.calibration.grid import Grid, Steps

if TYPE_CHECKING:
    import torch

__all__ = ["Moments", "Quantized", "Solver"]

_EXACT = 4096  # widths up to which matrices are factored in float64
_BLOCK = 1024  # width up to which LAPACK factors a block at once
_LEAST_ROWS, _ROWS_BYTES = 1024, 1 << 26  # of a matrix that are quantized at a time
_CHUNK = 1 << 27  # bytes of the normal equations of scales and biases that exist at a time


@dataclass
class Moments:
    """Sums over calibration tokens of the inputs of one matrix.

    Attributes:
        square: X^T X of the quantized model's inputs, float32 [in, in].
        cross: X'^T X with the original's inputs X', or None where they are not comparable.
        tokens: number of inputs.
    """

    square: torch.Tensor
    cross: torch.Tensor | None
    tokens: int = 0

    def add(self, inputs: torch.Tensor, original: torch.Tensor | None) -> None:
        """Add inputs [tokens, in] and the original's."""
        self.square.addmm_(inputs.T, inputs)
        if original is None:
            self.cross = None
        elif self.cross is not None:
            self.cross.addmm_(original.T, inputs)
        self.tokens += len(inputs)


@dataclass(frozen=True)
class Quantized:
    """A matrix on the grid.

    Attributes:
        codes: uint8 [out, in].
        scales, biases: float32 [out, groups]; biases are zeros in modes without any.
        values: float32 [out, in].
        error: its error form over that of a zero matrix.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    biases: torch.Tensor
    values: torch.Tensor
    error: float


class Solver:
    """Quantizes matrices that share their inputs.

    Args:
        moments: of the inputs; they are used up.
        damping: added to the diagonal of H, relative to its mean; it also holds the target near
            the original weights.
        sweeps: rounds of least squares and coordinate descent.
    """

    def __init__(self, moments: Moments, damping: float = 0.03, sweeps: int = 3) -> None:
        self.sweeps = sweeps
        hessian, cross = moments.square, moments.cross
        moments.cross = None
        self._gap = None if cross is None else cross.sub_(hessian)
        mean = float(hessian.diagonal().mean())
        hessian.diagonal().add_(damping * mean if mean > 0 else 1.0)
        self.hessian = hessian
        # H^-1 = U^T U with U upper triangular, which is the inverse of R in H = R R^T.
        upper = hessian.double() if len(hessian) <= _EXACT else hessian.clone()
        _factor(upper)
        _invert(upper)
        self._upper = upper.float()

    def quantize(self, weight: torch.Tensor, grid: Grid) -> Quantized:
        """The matrix `weight` float32 [out, in] on a grid; its rows are independent."""
        import torch

        step = max(_LEAST_ROWS, _ROWS_BYTES // (4 * weight.shape[1]))
        parts = [self._quantized(weight[i : i + step], grid) for i in range(0, len(weight), step)]
        if len(parts) == 1:
            found, error, scale = parts[0]
            return replace(found, error=error / scale if scale else 0.0)
        scale = sum(part[2] for part in parts)
        return Quantized(
            torch.cat([found.codes for found, _, _ in parts]),
            torch.cat([found.scales for found, _, _ in parts]),
            torch.cat([found.biases for found, _, _ in parts]),
            torch.cat([found.values for found, _, _ in parts]),
            sum(part[1] for part in parts) / scale if scale else 0.0,
        )

    def _quantized(self, weight: torch.Tensor, grid: Grid) -> tuple[Quantized, float, float]:
        """Some rows, their error form, and that of zeros."""
        import torch

        target = weight
        if self._gap is not None:
            # V - W = W (X'^T X - X^T X) H^-1
            target = weight + weight @ self._gap @ self._upper.T @ self._upper
        target = target.T.contiguous()
        aim = self.hessian @ target
        codes, steps = self._rounded(target, grid)
        for _ in range(self.sweeps):
            if grid.scheme.affine:
                steps = self._refitted(codes, aim, steps, grid)
            codes = self._revisited(codes, target, steps, grid)
        values = self._values(codes, steps, grid)
        gap = values - target
        found = Quantized(
            codes.T.to(torch.uint8).contiguous(),
            torch.stack([s.scale for s in steps], 1),
            torch.stack([s.bias for s in steps], 1),
            values.T.contiguous(),
            0.0,
        )
        error = float((gap * (self.hessian @ gap)).sum())
        return found, error, float((target * aim).sum())

    def _rounded(self, target: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, list[Steps]]:
        """GPTQ on a transposed matrix [in, out]."""
        import torch

        size, upper = grid.scheme.group_size, self._upper
        work = target.clone()
        codes = torch.empty_like(work)
        diagonal = upper.diagonal()
        steps = []
        for start in range(0, len(work), size):
            group = slice(start, start + size)
            block, local = work[group], upper[group, group]
            found = grid.search(block, diagonal[group].pow(-2))
            errors = torch.empty_like(block)
            for i in range(size):
                code, value = grid.nearest(block[i], found)
                codes[start + i] = code
                errors[i] = (block[i] - value) / local[i, i]
                block[i + 1 :].addr_(local[i, i + 1 :], errors[i], alpha=-1)
            if start + size < len(work):
                work[start + size :].addmm_(upper[group, start + size :].T, errors, alpha=-1)
            steps.append(found)
        return codes, steps

    def _revisited(
        self, codes: torch.Tensor, target: torch.Tensor, steps: list[Steps], grid: Grid
    ) -> torch.Tensor:
        """One sweep of coordinate descent over all codes."""
        size, hessian = grid.scheme.group_size, self.hessian
        gap = self._values(codes, steps, grid) - target
        codes = codes.clone()
        for index, found in enumerate(steps):
            group = slice(index * size, (index + 1) * size)
            slope = hessian[group] @ gap
            local = hessian[group, group]
            for i in range(size):
                at = index * size + i
                current = target[at] + gap[at]
                codes[at], value = grid.nearest(current - slope[i] / local[i, i], found)
                change = value - current
                gap[at] += change
                slope.addr_(local[i], change)
        return codes

    def _refitted(
        self, codes: torch.Tensor, aim: torch.Tensor, steps: list[Steps], grid: Grid
    ) -> list[Steps]:
        """Scales and biases by least squares under H, all groups of a row together.

        `aim` is H times the transposed target.
        """
        import torch

        groups, size, rows = len(steps), grid.scheme.group_size, codes.shape[1]
        found_scales = torch.stack([s.scale for s in steps])
        found_biases = torch.stack([s.bias for s in steps])
        hessian = self.hessian
        ones = torch.eye(groups, device=hessian.device).repeat_interleave(size, 0)
        sums = hessian @ ones  # [in, groups]
        constant = ones.T @ sums
        chunk = max(1, _CHUNK // (4 * (2 * groups) ** 2 * 3))
        middle = grid.top / 2
        for start in range(0, rows, chunk):
            part = slice(start, start + chunk)
            q = codes[:, part] - middle
            width = q.shape[1]
            q_groups = q.reshape(groups, size, width)
            normal = q.new_empty(width, 2 * groups, 2 * groups)
            for index in range(groups):
                columns = slice(index * size, (index + 1) * size)
                moved = (hessian[:, columns] @ q[columns]).reshape(groups, size, width)
                normal[:, :groups, index] = (q_groups * moved).sum(1).T
            mixed = torch.einsum("gsw,gsh->wgh", q_groups, sums.reshape(groups, size, groups))
            normal[:, :groups, groups:] = mixed
            normal[:, groups:, :groups] = mixed.mT
            normal[:, groups:, groups:] = constant
            aimed = aim[:, part].reshape(groups, size, width)
            right = torch.cat([(q_groups * aimed).sum(1), aimed.sum(1)]).T
            # A small pull towards the present values keeps groups of equal codes solvable.
            present = torch.cat(
                [
                    found_scales[:, part],
                    found_biases[:, part] + found_scales[:, part] * middle,
                ]
            ).T
            pull = normal.diagonal(dim1=1, dim2=2) * 1e-5 + 1e-12
            normal.diagonal(dim1=1, dim2=2).add_(pull)
            right += pull * present
            solved = torch.linalg.solve(normal.double(), right.double()[..., None])[..., 0].float()
            scale, level = solved[:, :groups].T, solved[:, groups:].T
            found_scales[:, part] = scale
            found_biases[:, part] = level - scale * middle
        return [grid.steps(s, b) for s, b in zip(found_scales, found_biases, strict=True)]

    def _values(self, codes: torch.Tensor, steps: list[Steps], grid: Grid) -> torch.Tensor:
        import torch

        size = grid.scheme.group_size
        return torch.cat(
            [grid.values(codes[i * size : (i + 1) * size], s) for i, s in enumerate(steps)]
        )


def _factor(hessian: torch.Tensor) -> None:
    """The upper triangular R of H = R R^T, in the place of H."""
    import torch

    if len(hessian) <= _BLOCK:
        hessian.copy_(torch.linalg.cholesky(hessian.flip(0, 1)).flip(0, 1))
        return
    half = len(hessian) // 2
    first, mixed, second = hessian[:half, :half], hessian[:half, half:], hessian[half:, half:]
    _factor(second)
    mixed.copy_(torch.linalg.solve_triangular(second.T, mixed, upper=False, left=False))
    hessian[half:, :half] = 0
    first.addmm_(mixed, mixed.T, alpha=-1)
    _factor(first)


def _invert(upper: torch.Tensor) -> None:
    """The inverse of an upper triangular matrix, in its place."""
    import torch

    if len(upper) <= _BLOCK:
        ones = torch.eye(len(upper), dtype=upper.dtype, device=upper.device)
        upper.copy_(torch.linalg.solve_triangular(upper, ones, upper=True))
        return
    half = len(upper) // 2
    first, mixed, second = upper[:half, :half], upper[:half, half:], upper[half:, half:]
    _invert(first)
    _invert(second)
    mixed.copy_(first @ mixed).neg_()
    mixed.copy_(mixed @ second)
