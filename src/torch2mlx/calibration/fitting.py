"""The matrices of one module fitted to what runs through it: codes, scales and biases by row."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from torch2mlx.calibration.grid import Grid
from torch2mlx.calibration.solver import Moments, Quantized, Solver
from torch2mlx.planning.plan import Output

if TYPE_CHECKING:
    import torch

    from torch2mlx.calibration.lockstep import Unit, Visit
    from torch2mlx.calibration.matching import RowMap

__all__ = ["Collected", "Fitting", "Settings", "packed_codes"]

Array = np.ndarray[Any, Any]

_PACKED_BYTES = 1 << 26  # of codes in 64 bits that exist at a time
_FEW = 0.25  # an expert that saw fewer tokens than this share of its width borrows from others


@dataclass(frozen=True)
class Settings:
    """How to calibrate.

    Attributes:
        damping: see `Solver`.
        sweeps: see `Solver`.
    """

    damping: float = 0.03
    sweeps: int = 3


class Fitting:
    """Quantizes the matrices of a module while batches run through it.

    Args:
        original: with the values of the checkpoint in float32.
        quantized: a copy, which gets the quantized values.
        rows: where the rows of written matrices are in them.
        settings: of the method.
        names: parameters that may be quantized; None: all of `rows`.
    """

    def __init__(
        self,
        original: torch.nn.Module,
        quantized: torch.nn.Module,
        rows: RowMap,
        settings: Settings,
        names: Collection[str] | None = None,
    ) -> None:
        from torch2mlx.calibration.lockstep import Units

        self.rows = rows
        self.settings = settings
        watched = list(rows.places if names is None else names)
        self.units = Units(quantized, watched)
        self.original_units = Units(original, watched)
        self.collected = [Collected(output) for output in rows.outputs]
        self.report: dict[str, Any] = {}
        self.solver: Solver | None = None
        self.tokens = 0
        self.shared: dict[str, Moments] = {}
        self.deferred: list[tuple[Unit, Moments]] = []
        self.once: set[str] = set()
        self.passed: set[str] = set()

    def run(
        self,
        passes: Sequence[tuple[Callable[[], Any], Callable[[], Any]]],
        once: Collection[str] = (),
        waiting: int | None = None,
    ) -> None:
        """Run the passes and quantize what they multiply by.

        Args:
            passes: of each batch the one through the copy and the one through the original.
            once: parameters that a pass uses once, and that can be given up then.
            waiting: batches that may wait at a time, see `run_in_lockstep`.
        """
        from torch2mlx.calibration.lockstep import run_in_lockstep

        self.once = set(once)
        run_in_lockstep(passes, [self.units, self.original_units], self._visit, waiting)
        self._finish()

    def _visit(self, visit: Visit) -> None:
        import torch

        if visit.complete and visit.unit.expert < 0:
            for name in self.passed:
                self.units.release(name)
                self.original_units.release(name)
            self.passed = {visit.unit.parameter} & self.once
        if not (visit.same and self.solver is not None):
            self.solver = None  # its matrices may be as large as the layer
            moments = self._moments(visit)
            self.tokens = moments.tokens
            if visit.unit.expert >= 0:
                shared = self.shared.setdefault(
                    _family(visit.unit), Moments(torch.zeros_like(moments.square), None)
                )
                shared.square += moments.square
                shared.tokens += moments.tokens
                width = len(moments.square)
                if moments.tokens < _FEW * width:
                    self.deferred.append((visit.unit, moments))
                    return
            self.solver = Solver(moments, self.settings.damping, self.settings.sweeps)
        self._quantize(visit.unit, self.solver)

    def _moments(self, visit: Visit) -> Moments:
        """Of all inputs; beside the original's where both are of the same tokens."""
        import torch

        width = self.units.weight(visit.unit).shape[1]
        device = self.units.weight(visit.unit).device
        square = torch.zeros(width, width, device=device)
        comparable = visit.unit.expert < 0
        moments = Moments(square, torch.zeros_like(square) if comparable else None)
        for quantized, original in visit.inputs():
            if original is None or quantized is None:
                moments.cross = None
            if quantized is not None:
                moments.add(quantized, original)
        return moments

    def _quantize(self, unit: Unit, solver: Solver, borrowed: bool = False) -> None:
        weight = self.units.weight(unit)
        owners, rows = (
            part[unit.start : unit.start + unit.rows] for part in self.rows.places[unit.parameter]
        )
        for number in np.unique(owners[owners >= 0]):
            collected = self.collected[number]
            scheme = collected.output.scheme
            assert scheme is not None
            here = np.flatnonzero(owners == number)
            found = solver.quantize(weight[here], Grid(scheme, collected.output.expr.dtype))
            weight[here] = found.values
            collected.put(rows[here], found)
            entry = self.report.setdefault(
                collected.output.module, {"error": 0.0, "tokens": self.tokens}
            )
            entry["error"] = max(entry["error"], found.error)
            entry["tokens"] = min(entry["tokens"], self.tokens)
            if borrowed:
                entry["borrowed"] = entry.get("borrowed", 0) + 1

    def _finish(self) -> None:
        """Experts that saw few tokens, or none, with the inputs of all experts of the layer."""
        met = {(unit.parameter, unit.start) for unit, _ in self.deferred}
        for unit, moments in [*self.deferred, *self._unmet(met)]:
            shared = self.shared[_family(unit)]
            width = len(shared.square)
            share = width / max(1, shared.tokens)
            pooled = Moments(moments.square + shared.square * share, None, moments.tokens)
            self.tokens = moments.tokens
            solver = Solver(pooled, self.settings.damping, self.settings.sweeps)
            self._quantize(unit, solver, borrowed=True)

    def _unmet(self, met: set[tuple[str, int]]) -> list[tuple[Unit, Moments]]:
        """Experts of a known family that no token was sent to."""
        import torch

        found = []
        for unit in self.units.experts():
            shared = self.shared.get(_family(unit))
            owners, rows = self.rows.places[unit.parameter]
            own = owners[unit.start : unit.start + unit.rows]
            if shared is None or (unit.parameter, unit.start) in met or not (own >= 0).all():
                continue
            if not self.collected[own[0]].filled[rows[unit.start]]:
                found.append((unit, Moments(torch.zeros_like(shared.square), None)))
        return found

    def tensors(self) -> dict[str, torch.Tensor]:
        """The written tensors of all matrices that were quantized."""
        return {
            name: value
            for collected in self.collected
            if collected.filled.all()
            for name, value in collected.tensors().items()
        }


class Collected:
    """The codes, scales and biases of one output, row by row."""

    def __init__(self, output: Output) -> None:
        import torch

        assert output.scheme is not None
        self.output = output
        self.scheme = output.scheme
        *lead, width = output.expr.shape
        self.lead = tuple(lead)
        count = int(np.prod(lead))
        groups = width // self.scheme.group_size
        self.codes = torch.zeros(count, width, dtype=torch.uint8)
        self.scales = torch.zeros(count, groups)
        self.biases = torch.zeros(count, groups)
        self.filled = np.zeros(count, np.bool_)

    def put(self, rows: Array, found: Quantized) -> None:
        """Take over rows."""
        self.codes[rows] = found.codes.cpu()
        self.scales[rows] = found.scales.cpu()
        self.biases[rows] = found.biases.cpu()
        self.filled[rows] = True

    def tensors(self) -> dict[str, torch.Tensor]:
        """The written tensors by name."""
        import torch

        dtype = self.output.expr.dtype
        grid = Grid(self.scheme, dtype)
        parts: dict[str, torch.Tensor] = {"weight": packed_codes(self.codes, self.scheme.bits)}
        if self.scheme.affine:
            target = getattr(torch, dtype.torch_name)
            parts |= {"scales": self.scales.to(target), "biases": self.biases.to(target)}
        else:
            parts["scales"] = grid.scale_bytes(self.scales)
        module = self.output.module
        return {
            f"{module}.{part}": value.reshape(*self.lead, -1).contiguous()
            for part, value in parts.items()
        }


def _family(unit: Unit) -> str:
    """A name that the same matrices of all experts share."""
    import re

    return re.sub(r"\.\d+\.", ".*.", unit.parameter)


def packed_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes [rows, in] in 32-bit words, lowest bits first: uint32 [rows, in * bits / 32]."""
    import torch

    packed = np.empty((len(codes), codes.shape[1] * bits // 32), np.uint32)
    step = max(1, _PACKED_BYTES // (8 * codes.shape[1]))
    for start in range(0, len(codes), step):
        part = codes[start : start + step].numpy()
        values = part.reshape(len(part), -1, 8).astype(np.uint64)
        words = np.zeros(values.shape[:2], np.uint64)
        for i in range(8):
            words |= values[..., i] << np.uint64(i * bits)
        octets = words[..., None].view(np.uint8)[..., :bits]
        rows = np.ascontiguousarray(octets).reshape(len(part), -1)
        packed[start : start + step] = rows.view("<u4")
    return torch.from_numpy(packed)
