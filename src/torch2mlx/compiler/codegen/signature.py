"""Arguments and results of the root: nested structures over flat tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch2mlx.compiler.codegen.expressions import literal
from torch2mlx.compiler.graph import Graph, Ref

__all__ = ["Argument", "arguments", "leaf_paths", "named_tuples", "plain", "result_source"]

Path = tuple[Any, ...]


@dataclass(frozen=True)
class Argument:
    """A top-level argument of the root.

    Attributes:
        name: of the parameter.
        keyword: the caller gives it by keyword; `position` otherwise.
        unpack: statements that take its tensors out of it.
        tensors: input of the graph → its local name.
    """

    name: str
    position: int | str
    unpack: tuple[str, ...]
    tensors: dict[str, str]


def leaf_paths(spec: Any) -> list[Path]:
    """For every leaf of a pytree the keys that lead to it: indices, or keys of a dict.

    Objects with named parts other than named tuples count as dicts.
    """
    if spec.is_leaf():
        return [()]
    return [
        (key, *path)
        for key, child in zip(_keys(spec), spec.children(), strict=True)
        for path in leaf_paths(child)
    ]


def _kind(spec: Any) -> Any:
    """The class of a node; torch keeps that of a named tuple beside a type for all of them."""
    return spec.type if isinstance(spec.type, type) else spec.context


def _keys(spec: Any) -> list[Any]:
    """What leads to the children of a node."""
    from torch.utils import _pytree as pytree

    if issubclass(_kind(spec), tuple | list):
        return list(range(spec.num_children))
    node = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    with_keys = pytree.SUPPORTED_NODES[spec.type].flatten_with_keys_fn
    if with_keys is None:  # registered without names for its parts, as classes of diffusers are
        return list(node) if isinstance(node, Mapping) else list(range(spec.num_children))
    found, _ = with_keys(node)
    return [getattr(key, "key", getattr(key, "name", key)) for key, _ in found]


def named_tuples(spec: Any) -> dict[str, tuple[str, ...]]:
    """Name and fields of every kind of named tuple in a pytree; torch's own are plain tuples."""
    from torch.utils import _pytree as pytree

    found: dict[str, tuple[str, ...]] = {}
    if spec.is_leaf():
        return found
    if pytree.is_namedtuple_class(_kind(spec)):
        found[_kind(spec).__name__] = _kind(spec)._fields
    for child in spec.children():
        found |= named_tuples(child)
    return found


def arguments(graph: Graph) -> list[Argument]:
    """The root's arguments that hold tensors; the others were fixed by the export."""
    found: dict[tuple[int, Any], list[tuple[Path, str]]] = {}
    for path, leaf in zip(leaf_paths(graph.in_spec), graph.flat_inputs, strict=True):
        if isinstance(leaf, Ref):
            found.setdefault((path[0], path[1]), []).append((path[2:], leaf.name))
    result = []
    for (keyword, which), leaves in found.items():
        if keyword:
            name = str(which)
        elif which < len(graph.argument_names):
            name = graph.argument_names[which]
        else:
            name = f"input_{which}"
        if len(leaves) == 1 and not leaves[0][0]:
            result.append(Argument(name, which, (), {leaves[0][1]: name}))
            continue
        unpack = tuple(f"{leaf} = {name}{_subscripts(path)}" for path, leaf in leaves)
        result.append(Argument(name, which, unpack, {leaf: leaf for _, leaf in leaves}))
    return result


def _subscripts(path: Path) -> str:
    return "".join(f"[{literal(key)}]" for key in path)


def result_source(spec: Any, outputs: tuple[Any, ...], write: Callable[[Any], str]) -> str:
    """Source of what a method returns: the structure of the original, with dicts for objects
    that are neither tuples, lists, dicts nor named tuples.
    """
    from torch.utils import _pytree as pytree

    leaves = iter(outputs)

    def nested(spec: Any) -> str:
        if spec.is_leaf():
            return write(next(leaves))
        keys = _keys(spec)
        parts = [nested(child) for child in spec.children()]
        kind = _kind(spec)
        if pytree.is_namedtuple_class(kind):
            return f"{kind.__name__}({', '.join(parts)})"
        if issubclass(kind, list):
            return f"[{', '.join(parts)}]"
        if issubclass(kind, tuple):
            return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
        return "{" + ", ".join(f"{literal(k)}: {p}" for k, p in zip(keys, parts, strict=True)) + "}"

    return nested(spec)


def plain(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """Arguments of the original as the generated model takes them: leaves changed, objects that
    are neither tuples, lists nor dicts as dicts.
    """
    from torch.utils import _pytree as pytree

    leaves, spec = pytree.tree_flatten(value)
    values = iter(leaves)

    def nested(spec: Any) -> Any:
        if spec.is_leaf():
            return leaf(next(values))
        keys = _keys(spec)
        parts = [nested(child) for child in spec.children()]
        if issubclass(_kind(spec), tuple | list):
            return parts if issubclass(_kind(spec), list) else tuple(parts)
        return dict(zip(keys, parts, strict=True))

    return nested(spec)
