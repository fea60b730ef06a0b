"""Inputs like those of an example: other values, other sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch2mlx.compiler.dimensions import Dimension
from torch2mlx.compiler.graph import Graph, Ref
from torch2mlx.compiler.symbolic import SymbolicInt

if TYPE_CHECKING:
    import torch

__all__ = ["INTEGERS", "STEPS", "fresh_inputs", "other_sizes"]

STEPS = (1, 2, 4, 8, 16, 32, 64)
"""How far other sizes lie: a model may take only multiples of something."""

INTEGERS = ("drawn", "shuffled", "partly shuffled", "kept")
"""What becomes of the example's integers: drawn from its values, in another order, in another
order but for those that stand there more than twice (placeholders), as they are."""


def other_sizes(known: Sequence[Dimension], sign: int, step: int) -> dict[str, int] | None:
    """Every extent a step larger or smaller, no two by the same amount where they may grow;
    None if the bounds leave them as they are.
    """
    sizes = {}
    for number, dim in enumerate(known):
        change = step * (1 + number) if sign > 0 else -step
        size = max(dim.value + change, dim.low, 2)  # torch treats an extent of 1 as fixed
        sizes[dim.name] = size if dim.high is None else min(size, dim.high)
    return None if all(sizes[d.name] == d.value for d in known) else sizes


def fresh_inputs(
    flat: Sequence[Any],
    graph: Graph,
    sizes: Mapping[str, int],
    generator: torch.Generator,
    integers: str = "drawn",
) -> list[Any]:
    """Inputs of the example's kind: other values, in the given sizes.

    Args:
        flat: leaves of the example.
        graph: knows their shapes.
        sizes: name of an extent → its size; {}: as in the example.
        generator: of the values.
        integers: one of `INTEGERS`; all but the first need the example's sizes.
    """
    import torch

    types = {i.name: i.type for i in graph.inputs}
    result = []
    for value, leaf in zip(flat, _leaves(flat, graph), strict=True):
        if not isinstance(leaf, Ref):
            result.append(value)
            continue
        if leaf.name in graph.frozen:
            result.append(value)
            continue
        shape = [_extent(n, sizes) for n in types[leaf.name].shape]
        # Floats that are whole numbers are masks and counts, as valid as integers.
        counts = bool((value == value.round()).all()) if value.is_floating_point() else True
        if value.is_floating_point() and not (counts and value.any()):
            spread = float(value.float().std()) if value.numel() > 1 else 0.0
            fresh = torch.randn(shape, generator=generator)
            fresh = fresh * (spread or 1.0) + (float(value.float().mean()) if spread else 0.0)
            result.append(fresh.to(value.dtype))
            continue
        # Integers index something: only values of the example are known to be valid.
        pool = value.flatten()
        if integers == "kept":
            result.append(value)
            continue
        if integers == "shuffled":
            places = torch.randperm(pool.numel(), generator=generator)
            result.append(pool[places].reshape(shape))
            continue
        if integers == "partly shuffled":
            _, which, counts = pool.unique(return_inverse=True, return_counts=True)
            free = (counts[which] <= 2).nonzero()[:, 0]
            mixed = pool.clone()
            mixed[free] = pool[free[torch.randperm(len(free), generator=generator)]]
            result.append(mixed.reshape(shape))
            continue
        places = torch.randint(max(pool.numel(), 1), (math.prod(shape),), generator=generator)
        result.append(pool[places].reshape(shape))
    return result


def _leaves(flat: Sequence[Any], graph: Graph) -> list[Any]:
    """The graph's flat inputs beside ours; leaves that export left out are constants."""
    import torch

    leaves = list(graph.flat_inputs)
    if len(leaves) == len(flat):
        return leaves
    given = iter(leaf for leaf in leaves if isinstance(leaf, Ref))
    return [next(given) if isinstance(v, torch.Tensor) else v for v in flat]


def _extent(extent: int, sizes: Mapping[str, int]) -> int:
    """An extent for other values of the names in it."""
    if not isinstance(extent, SymbolicInt) or not sizes:
        return int(extent)
    return int(eval(extent.expression, {"math": math}, dict(sizes)))
