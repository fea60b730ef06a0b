"""Strides of tensors that lie in memory as their shape says, as an operator of their values.

`aten.as_strided` addresses memory, which a graph of values does not show.  Where its tensor has
no gaps, its values in the order of memory are what `strided` takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["strided", "with_strides_of_values"]

_SCHEMA = "strided(Tensor x, int[] size, int[] stride, int offset) -> Tensor"


def _strided(
    x: torch.Tensor, size: Sequence[int], stride: Sequence[int], offset: int
) -> torch.Tensor:
    return torch.as_strided(x.contiguous(), size, stride, offset).clone()


def _fake(x: torch.Tensor, size: Sequence[int], *_: Any) -> torch.Tensor:
    return x.new_empty(size)


@cache
def strided() -> Any:
    """The operator `torch2mlx_strides::strided`, defined once a process."""
    library: Any = torch.library.Library("torch2mlx_strides", "DEF")  # type: ignore[no-untyped-call]
    library.define(_SCHEMA)
    library.impl("strided", _strided, "CompositeExplicitAutograd")
    torch.library.register_fake("torch2mlx_strides::strided", _fake, lib=library)
    strided.library = library  # type: ignore[attr-defined]  # it ends with its last reference
    return torch.ops.torch2mlx_strides.strided.default


def with_strides_of_values(program: ExportedProgram) -> ExportedProgram:
    """A functional program, changed in place, with `strided` where it is the same."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is not torch.ops.aten.as_strided.default or node.kwargs:
            continue
        x, size, stride, *rest = node.args
        value = x.meta["val"]
        order = _memory_order(value)
        if order is None or not _are_ints([*size, *stride, *(n for n in rest if n is not None)]):
            continue
        first = value.storage_offset()
        offset = (rest[0] if rest and rest[0] is not None else first) - first
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if offset < 0 or last >= value.numel():
            continue
        if order != sorted(order):
            with graph.inserting_before(node):
                x = graph.call_function(torch.ops.aten.permute.default, (x, order))
            x.meta = {**node.meta, "val": value.permute(order)}
        node.target, node.args = strided(), (x, list(size), list(stride), offset)
    program.graph_module.recompile()
    return program


def _memory_order(x: torch.Tensor) -> list[int] | None:
    """Axes from the outermost in memory on; None where a tensor's elements leave gaps."""
    if not _are_ints([*x.shape, *x.stride(), x.storage_offset()]) or not x.numel():
        return None
    steps = x.stride()
    order = sorted(range(x.ndim), key=lambda axis: (-steps[axis], axis))
    if x.is_contiguous():
        return list(range(x.ndim))
    return order if x.permute(order).is_contiguous() else None


def _are_ints(numbers: Sequence[Any]) -> bool:
    return all(type(n) is int for n in numbers)
