"""Arguments and results of the root: nested structures over flat tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch2mlx.compiler.codegen.expressions import literal
from torch2mlx.compiler.graph import Graph, Ref

__all__ = ["Argument", "arguments", "leaf_paths", "result_source"]

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
    """For every leaf of a pytree the keys that lead to it: ints, dict keys, attribute names."""
    from torch.utils import _pytree as pytree

    tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    return [tuple(map(_key, path)) for path, _ in pytree.tree_flatten_with_path(tree)[0]]


@dataclass(frozen=True)
class _Attribute:
    name: str


def _key(key: Any) -> Any:
    for field in ("idx", "key"):
        if hasattr(key, field):
            return getattr(key, field)
    return _Attribute(key.name)


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
    return "".join(f".{k.name}" if isinstance(k, _Attribute) else f"[{literal(k)}]" for k in path)


def result_source(spec: Any, outputs: tuple[Any, ...], write: Callable[[Any], str]) -> str:
    """Source of what the root returns; objects with attributes become dicts."""
    paths = leaf_paths(spec)
    return _nested(list(zip(paths, outputs, strict=True)), write)


def _nested(leaves: list[tuple[Path, Any]], write: Callable[[Any], str]) -> str:
    if len(leaves) == 1 and not leaves[0][0]:
        return write(leaves[0][1])
    parts: dict[Any, list[tuple[Path, Any]]] = {}
    for path, leaf in leaves:
        parts.setdefault(path[0], []).append((path[1:], leaf))
    written = {key: _nested(inner, write) for key, inner in parts.items()}
    if all(isinstance(key, int) for key in written):
        comma = "," if len(written) == 1 else ""
        return f"({', '.join(written.values())}{comma})"
    keys = {key: literal(key.name if isinstance(key, _Attribute) else key) for key in written}
    return "{" + ", ".join(f"{keys[k]}: {text}" for k, text in written.items()) + "}"
