"""Operators of an exported program whose size values decide, with the size that they had.

And composites of tensors of such sizes, which have no lowering of their own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["Editor", "computed", "has_unknown_sizes", "sized", "with_static_sizes"]

aten = torch.ops.aten

_SCHEMA = (
    "sized(Tensor x, Tensor[] others, str operator, int result, int[] shape, ScalarType dtype)"
)
"""A result of an operator that has no argument for its size; `computed` gives its values."""


def _sized(
    x: torch.Tensor,
    others: Sequence[torch.Tensor],
    operator: str,
    result: int,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    return x.new_empty(shape, dtype=dtype)


@cache
def sized() -> Any:
    """The operator `torch2mlx_sized::sized`, defined once a process."""
    library: Any = torch.library.Library("torch2mlx_sized", "DEF")  # type: ignore[no-untyped-call]
    library.define(f"{_SCHEMA} -> Tensor")
    torch.library.register_fake("torch2mlx_sized::sized", _sized, lib=library)
    sized.library = library  # type: ignore[attr-defined]  # it ends with its last reference
    return torch.ops.torch2mlx_sized.sized.default


def has_unknown_sizes(program: ExportedProgram) -> bool:
    """Whether a size or number of the program comes out of a tensor's data."""
    return any(_unknown(node.meta.get("val")) for node in program.graph.nodes)


def _unknown(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_unknown, value))
    if isinstance(value, torch.Tensor):
        return any(map(_unknown, value.shape))
    symbols = value.node.expr.free_symbols if hasattr(value, "node") else ()
    return any(s.name.startswith(("u", "zuf")) for s in symbols)


def with_static_sizes(program: ExportedProgram) -> ExportedProgram:
    """The program, changed in place, with operators whose sizes are arguments."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        rule = _RULES.get(node.target)
        if rule is None:
            continue
        with graph.inserting_before(node):
            rule(Editor(graph, node))
        if not node.users:
            graph.erase_node(node)
    program.graph_module.recompile()
    return program


class Editor:
    """New nodes before one, with the types that they compute."""

    def __init__(self, graph: Any, node: Any) -> None:
        self.graph, self.node = graph, node

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        """A node like the edited one, whose value is computed on fake tensors."""
        from torch._guards import detect_fake_mode

        made = self.graph.call_function(target, args, kwargs)
        for key in ("nn_module_stack", "stack_trace", "torch_fn", "source_fn_stack"):
            if key in self.node.meta:
                made.meta[key] = self.node.meta[key]
        fakes = torch.fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
        mode = detect_fake_mode(fakes)
        with mode if mode is not None else torch.no_grad():
            made.meta["val"] = target(*fakes[0], **fakes[1])
        return made

    def places(self, mask: Any, count: int) -> list[Any]:
        """Indices of the elements that are not zero, a node for each axis."""
        found = self.call(aten.nonzero_static.default, mask, size=count)
        return [self.call(aten.select.int, found, 1, i) for i in range(mask.meta["val"].ndim)]

    def replace(self, made: Any) -> None:
        """Use another node instead."""
        self.node.replace_all_uses_with(made)


def _size(node: Any, axis: int = 0) -> int:
    value = node.meta["val"]
    return int((value[0] if isinstance(value, list | tuple) else value).shape[axis])


def _nonzero(edit: Editor) -> None:
    if edit.node.args[0].meta["val"].ndim:
        made = edit.call(aten.nonzero_static.default, edit.node.args[0], size=_size(edit.node))
        edit.replace(made)


def _each_axis(edit: Editor) -> None:
    """nonzero_numpy and where(condition): a list, read by getitem."""
    if not edit.node.args[0].meta["val"].ndim:
        return
    places = edit.places(edit.node.args[0], _size(edit.node))
    for user in list(edit.node.users):
        user.replace_all_uses_with(places[user.args[1]])
        edit.graph.erase_node(user)


def _index(edit: Editor) -> None:
    x, indices = edit.node.args
    if not any(i is not None and _is_mask(i) for i in indices):
        return
    given = [n for n, i in enumerate(indices) if i is not None]
    others = [indices[n].meta["val"].ndim for n in given if not _is_mask(indices[n])]
    # Broadcast axes stand where indices beside each other stood; of others, first.
    beside = given == list(range(given[0], given[-1] + 1))
    axis = (given[0] if beside else 0) + max([1, *others]) - 1
    found: list[Any] = []
    for index in indices:
        masked = index is not None and _is_mask(index)
        found += edit.places(index, _size(edit.node, axis)) if masked else [index]
    edit.replace(edit.call(aten.index.Tensor, x, found))


def _is_mask(node: Any) -> bool:
    return node.meta["val"].dtype in (torch.bool, torch.uint8)


def _masked_select(edit: Editor) -> None:
    x, mask = edit.node.args
    both = torch._C._infer_size(x.meta["val"].shape, mask.meta["val"].shape)
    x, mask = (edit.call(aten.expand.default, v, list(both)) for v in (x, mask))
    edit.replace(edit.call(aten.index.Tensor, x, edit.places(mask, _size(edit.node))))


def _repeat_interleave(edit: Editor) -> None:
    axis = 0
    if edit.node.target is aten.repeat_interleave.self_Tensor and len(edit.node.args) > 2:
        axis = edit.node.args[2] or 0
    edit.node.kwargs = {**edit.node.kwargs, "output_size": _size(edit.node, axis)}


def _pad_sequence(edit: Editor) -> None:
    tensors, *rest = edit.node.args
    named = dict(zip(("batch_first", "padding_value", "padding_side"), rest, strict=False))
    named |= edit.node.kwargs
    lengths = [n.meta["val"].shape[0] for n in tensors]
    if not all(type(n) is int for n in lengths):
        return
    value, left = named.get("padding_value", 0.0), named.get("padding_side") == "left"
    padded = []
    for tensor, length in zip(tensors, lengths, strict=True):
        more = max(lengths) - length
        sides = [0, 0] * (tensor.meta["val"].ndim - 1) + ([more, 0] if left else [0, more])
        padded.append(edit.call(aten.constant_pad_nd.default, tensor, sides, value))
    edit.replace(edit.call(aten.stack.default, padded, 0 if named.get("batch_first") else 1))


def _other(edit: Editor) -> None:
    node = edit.node
    tensors = [a for a in node.args if isinstance(a, torch.fx.Node)]
    rest = [a for a in node.args if not isinstance(a, torch.fx.Node)]
    operator = json.dumps([str(node.target), rest, dict(node.kwargs)])
    several = isinstance(node.meta["val"], list | tuple)
    values = node.meta["val"] if several else [node.meta["val"]]
    made = [
        edit.call(sized(), tensors[0], tensors[1:], operator, i, list(v.shape), v.dtype)
        for i, v in enumerate(values)
    ]
    if not several:
        edit.replace(made[0])
        return
    for user in list(node.users):
        user.replace_all_uses_with(made[user.args[1]])
        edit.graph.erase_node(user)


_OTHERS = (
    aten._unique2.default,
    aten._unique.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.unique_dim_consecutive.default,
    aten.bincount.default,
)


def computed(x: torch.Tensor, others: Sequence[torch.Tensor], operator: str, result: int) -> Any:
    """What `sized` stands for, on values."""
    name, rest, kwargs = json.loads(operator)
    target = next(t for t in _OTHERS if str(t) == name)
    found = target(x, *others, *rest, **kwargs)
    return found[result] if isinstance(found, list | tuple) else found


_RULES: dict[Any, Any] = {
    aten.nonzero.default: _nonzero,
    aten.argwhere.default: _nonzero,
    aten.nonzero_numpy.default: _each_axis,
    aten.where.default: _each_axis,
    aten.index.Tensor: _index,
    aten.masked_select.default: _masked_select,
    aten.repeat_interleave.Tensor: _repeat_interleave,
    aten.repeat_interleave.self_Tensor: _repeat_interleave,
    aten.pad_sequence.default: _pad_sequence,
    **dict.fromkeys(_OTHERS, _other),
}
