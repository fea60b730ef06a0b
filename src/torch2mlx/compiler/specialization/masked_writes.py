"""`x[torch.where(mask)] = number`: written under the mask, so that no size depends on values."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch

from torch2mlx.compiler.specialization.static_sizes import Editor

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["with_masked_writes"]

aten = torch.ops.aten

_PLACES = (aten.where.default, aten.nonzero_numpy.default)
_WRITES = (aten.index_put_.default, aten.index_put.default)
# What an export adds to check that a number of places is one.
_CHECKS = (aten.sym_size.int, aten._assert_scalar.default, operator.ge, operator.le)


def with_masked_writes(program: ExportedProgram) -> ExportedProgram:
    """The program, changed in place, where places of a mask do nothing but take one number."""
    graph = program.graph_module.graph
    for node in [n for n in graph.nodes if n.target in _PLACES]:
        followers = _followers(node)
        writes = [n for n in followers if n.target in _WRITES]
        axes = [n for n in followers if n.target is operator.getitem]
        rest = [n for n in followers if n not in writes and n not in axes]
        if not writes or not all(_under(w, node) for w in writes):
            continue
        if any(n.target not in _CHECKS for n in rest):
            continue
        for write in writes:
            with graph.inserting_before(write):
                _masked(Editor(graph, write), node.args[0])
            graph.erase_node(write)
        for follower in sorted({*axes, *rest}, key=list(graph.nodes).index, reverse=True):
            graph.erase_node(follower)
        graph.erase_node(node)
    program.graph_module.recompile()
    return program


def _followers(node: Any) -> list[Any]:
    """What uses the places, or what a check computes of them; writes end the search."""
    found: list[Any] = []
    queue = list(node.users)
    while queue:
        user = queue.pop()
        if user not in found:
            found.append(user)
            if user.target is operator.getitem or user.target in _CHECKS:
                queue += user.users
    return found


def _under(write: Any, places: Any) -> bool:
    """Whether a write puts one number at exactly these places."""
    x, indices, value, *accumulate = write.args
    if x in places.users or value in places.users:
        return False
    wanted = [(places, axis) for axis in range(places.args[0].meta["val"].ndim)]
    given = [i.args if i is not None and i.target is operator.getitem else None for i in indices]
    return given == wanted and value.meta["val"].numel() == 1 and not any(accumulate)


def _masked(edit: Any, mask: Any) -> None:
    x, _, value, *_ = edit.node.args
    for _ in range(x.meta["val"].ndim - mask.meta["val"].ndim):
        mask = edit.call(aten.unsqueeze.default, mask, -1)
    made = edit.call(aten.where.self, mask, value, x)
    if edit.node.target is aten.index_put_.default:
        made = edit.call(aten.copy_.default, x, made)
    edit.replace(made)
