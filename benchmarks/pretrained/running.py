"""A task solved twice: with PyTorch's modules, and with what torch2mlx makes of them."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

import torch2mlx
from pretrained.task import Part, Task

__all__ = ["Outcome", "solve"]


@dataclass
class Measured:
    """What was seen of one part.

    Attributes:
        operators: that were lowered; 0 for a port.
        gate: worst relative L2 error in the conversion's own comparison.
        distance: worst one over all calls of the task.
        calls: how often the task called it.
        seconds: that its conversions took.
    """

    operators: int = 0
    gate: float = 0.0
    distance: float = 0.0
    calls: int = 0
    seconds: float = 0.0


class InMLX(nn.Module):
    """Stands in for a module: computes in MLX, and beside it in PyTorch to compare."""

    def __init__(self, part: Part, folder: Path) -> None:
        super().__init__()
        self.original = part.module
        self.part = part
        self.folder = folder
        self.measured = Measured()
        self.models: dict[Any, Any] = {}

    def forward(self, *args: Any) -> Any:
        """The module's outputs, computed in MLX, as torch tensors."""
        leaves = [x for x in pytree.tree_leaves(args) if isinstance(x, torch.Tensor)]
        fixed = self.part.dynamic is None and self.part.port is None
        key = tuple(x.shape for x in leaves) if fixed else ()
        if key not in self.models:
            self.models[key] = self.convert(args)
        with torch.no_grad():
            expected = self.original(*args)
        arrays = pytree.tree_map_only(torch.Tensor, lambda x: mx.array(x.detach().numpy()), args)
        found = pytree.tree_map_only(mx.array, _to_torch, self.models[key](*arrays))
        pairs = zip(pytree.tree_leaves(expected), pytree.tree_leaves(found), strict=True)
        distances = [_distance(a, b) for a, b in pairs]
        self.measured.calls += 1
        self.measured.distance = max(self.measured.distance, *distances)
        return found

    def convert(self, args: tuple[Any, ...]) -> Any:
        """The generated model, or the port, for the arguments of a real call."""
        folder = self.folder / str(len(self.models))
        start = time.perf_counter()
        if self.part.port is not None:
            from mlx_lm import load

            made: Any = torch2mlx.convert(self.part.port, folder, dtype="float32")
            self.measured.seconds += time.perf_counter() - start
            return load(str(folder))[0]
        made = torch2mlx.convert(
            self.original, folder, example_inputs=args, dynamic_shapes=self.part.dynamic
        )
        measured = self.measured
        measured.seconds += time.perf_counter() - start
        measured.operators = made.operators
        measured.gate = max(measured.gate, made.error)
        return _load(folder)


def _load(folder: Path) -> Any:
    """What `from model import load` gives in a folder."""
    sys.path.insert(0, str(folder))
    sys.modules.pop("model", None)
    importlib.invalidate_caches()
    try:
        return importlib.import_module("model").load(folder)
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("model", None)


def _to_torch(array: mx.array) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


def _distance(expected: Any, found: Any) -> float:
    """Relative L2 distance; infinite for other shapes, places of NaN and Inf, or integers."""
    if not isinstance(expected, torch.Tensor):
        return 0.0 if expected == found else float("inf")
    if expected.shape != found.shape:
        return float("inf")
    if not expected.is_floating_point():
        return 0.0 if bool((expected == found).all()) else float("inf")
    a, b = expected.double(), found.double()
    finite = a.isfinite()
    if not torch.equal(torch.where(finite, 0, a), torch.where(finite, 0, b)):
        return float("inf")
    a, b = a[finite], b[finite]
    norm = float(a.norm())
    return float((a - b).norm()) / norm if norm else float(b.norm())


@dataclass(frozen=True)
class Outcome:
    """Both answers, and what was measured of each part."""

    expected: str
    found: str
    measured: Mapping[str, Measured]
    parameters: int


def solve(task: Task, folder: Path) -> Outcome:
    """Solve a task with PyTorch, then with MLX, on the same inputs."""
    torch.manual_seed(0)
    expected = task.solve({name: part.module for name, part in task.parts.items()})
    nets = {name: InMLX(part, folder / name) for name, part in task.parts.items()}
    torch.manual_seed(0)
    found = task.solve(nets)
    sizes = {id(p): p.numel() for part in task.parts.values() for p in part.module.parameters()}
    return Outcome(
        expected, found, {name: net.measured for name, net in nets.items()}, sum(sizes.values())
    )
