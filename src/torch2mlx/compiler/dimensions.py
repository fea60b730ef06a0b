"""Extents that may change: what a user calls them, and which values they may have."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch2mlx.compiler.symbolic import SymbolicInt, solved
from torch2mlx.errors import OptionError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from torch2mlx.compiler.graph import Graph

__all__ = ["Dimension", "dimension_names", "dimensions", "parse_dynamic"]


@dataclass(frozen=True)
class Dimension:
    """A named extent.

    Attributes:
        name: in the generated code.
        value: on the example.
        low, high: bounds that torch found or was given; None: no upper one.
    """

    name: str
    value: int
    low: int
    high: int | None


def dimensions(graph: Graph, exported: ExportedProgram) -> tuple[Dimension, ...]:
    """Every name in the shapes of a program's inputs, also of those like `2*length`."""
    nodes = {n.name: n for n in exported.graph.nodes if n.op == "placeholder"}
    found: dict[str, Dimension] = {}
    for given in graph.inputs:
        value = nodes[given.name].meta["val"]
        for extent, named in zip(value.shape, given.type.shape, strict=True):
            known = solved(named.expression) if isinstance(named, SymbolicInt) else None
            symbols = list(extent.node.expr.free_symbols) if known else []
            if known is None or known[0] in found or len(symbols) != 1:
                continue
            example = int(eval(known[1].format(int(named))))
            low, high = _bounds(exported.range_constraints.get(symbols[0]))
            found[known[0]] = Dimension(known[0], example, low, high)
    return tuple(found.values())


def _bounds(bounds: Any) -> tuple[int, int | None]:
    if bounds is None:
        return 2, None
    low = int(bounds.lower) if bounds.lower.is_Integer else 2
    # torch writes "no bound" as an infinity of its own or as the largest index.
    high = int(bounds.upper) if bounds.upper.is_Integer else None
    return low, high


def dimension_names(exported: ExportedProgram, dynamic_shapes: Any) -> dict[str, str]:
    """Torch's symbol → the name that the user gave the dimension, or one after its input."""
    from torch.export.graph_signature import InputKind

    nodes = {n.name: n for n in exported.graph.nodes if n.op == "placeholder"}
    specs = [s for s in exported.graph_signature.input_specs if s.kind == InputKind.USER_INPUT]
    values = [nodes[s.arg.name].meta["val"] if s.arg.name in nodes else None for s in specs]
    names: dict[str, str] = {}
    for name, symbol in _given(exported, values, dynamic_shapes):
        names.setdefault(symbol, name)
    taken = set(names.values()) | set(nodes)
    derived: list[Any] = []
    for spec, value in zip(specs, values, strict=True):
        for axis, extent in enumerate(getattr(value, "shape", ())):
            if isinstance(extent, int):
                continue
            symbol = str(extent)
            if not symbol.isidentifier():
                derived.append(extent)
            elif symbol not in names:
                assert value is not None
                usual = ("batch", "length") if len(value.shape) < 4 else ("batch",)
                wanted = usual[axis] if axis < len(usual) else f"{spec.arg.name}_{axis}"
                names[symbol] = wanted if wanted not in taken else f"{spec.arg.name}_{axis}"
                taken.add(names[symbol])
    for extent in derived:
        for free in sorted(map(str, extent.node.expr.free_symbols)):
            if free not in names:
                names[free] = next(
                    n for n in ("n", *(f"n_{i}" for i in range(2, 99))) if n not in taken
                )
                taken.add(names[free])
    return names


def _given(
    exported: ExportedProgram, values: list[Any], dynamic_shapes: Any
) -> Iterator[tuple[str, str]]:
    """Names of `Dim`s, each with the symbol it became."""
    from torch.utils import _pytree as pytree

    if not dynamic_shapes:
        return
    args, kwargs = pytree.tree_unflatten(list(values), exported.call_spec.in_spec)
    signature = exported.module_call_graph[0].signature
    order = list(signature.forward_arg_names or ()) if signature is not None else []
    given = {**dict(zip(order, args, strict=False)), **kwargs}
    if isinstance(dynamic_shapes, Mapping):
        for key, spec in dynamic_shapes.items():
            if spec is not None and key in given:
                yield from _visit(spec, given[key])
    else:
        yield from _visit(tuple(dynamic_shapes), tuple(given.values()))


def _visit(spec: Any, value: Any) -> Iterator[tuple[str, str]]:
    if hasattr(value, "shape"):
        axes = spec.items() if isinstance(spec, Mapping) else enumerate(spec or ())
        for axis, dim in axes:
            # Of a derived dimension such as 2*length the one that it is derived from.
            name = getattr(getattr(dim, "root", dim), "__name__", "")
            symbols = getattr(value.shape[axis], "node", None)
            free = sorted(map(str, symbols.expr.free_symbols)) if symbols is not None else []
            if len(free) == 1 and name.isidentifier() and not name.startswith("_"):
                yield name, free[0]
    elif isinstance(value, Mapping) and isinstance(spec, Mapping):
        for key in value:
            yield from _visit(spec.get(key), value[key])
    elif isinstance(value, list | tuple) and isinstance(spec, list | tuple):
        for inner, item in zip(spec, value, strict=False):
            yield from _visit(inner, item)


_DYNAMIC = re.compile(
    r"(?P<path>\w+(?:\.\w+)*):(?P<axis>\d+)=(?:(?P<factor>[1-9]\d*)\*)?(?P<name>[^\W\d]\w*)"
    r"(?P<offset>[+-]\d+)?(?::(?P<low>\d+)\.\.(?P<high>\d*))?"
)
_FORM = "write argument:axis=name, as in 'x:0=batch', 'x:1=2*length' or 'x:0=batch:2..64'"


def parse_dynamic(
    texts: Sequence[str], forward: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """`dynamic_shapes` of texts such as "x:0=batch"; equal names mean equal extents.

    "x:1=2*length+1" derives an extent, "x:0=batch:2..64" bounds the name (in any of its texts),
    "states.0:1=batch" reaches into a list, tuple or dict.

    Args:
        texts: as the command line takes them.
        forward: the function that is exported, for the names of its arguments.
        args: positional arguments of its example.
        kwargs: keyword arguments.

    Raises:
        OptionError: a text of another form, an argument that the module does not have, an axis
            that its tensor does not have, or two different bounds of one name.
    """
    import torch
    from torch.utils import _pytree as pytree

    try:
        given = dict(inspect.signature(forward).bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise OptionError(f"the example does not fit {_function_name(forward)}: {error}") from error
    matches = []
    for text in texts:
        match = _DYNAMIC.fullmatch(text)
        if match is None:
            raise OptionError(f"--dynamic {text}: {_FORM}")
        matches.append((text, match))
    roots = _roots(matches)
    paths = {
        ".".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path): (
            leaf
        )
        for path, leaf in pytree.tree_flatten_with_path(given)[0]
    }
    tensors = {path: leaf for path, leaf in paths.items() if isinstance(leaf, torch.Tensor)}
    wanted: dict[str, dict[int, Any]] = {}
    for text, match in matches:
        path, axis = match["path"], int(match["axis"])
        if path not in tensors:
            raise OptionError(
                f"--dynamic {text}: no tensor argument {path!r}; there is {', '.join(tensors)}"
            )
        if axis >= tensors[path].ndim:
            raise OptionError(
                f"--dynamic {text}: {path} has {tensors[path].ndim} axes, counted from 0"
            )
        dim: Any = roots[match["name"]]
        if match["factor"] and int(match["factor"]) > 1:
            dim = int(match["factor"]) * dim
        if match["offset"]:
            dim = dim + int(match["offset"])
        wanted.setdefault(path, {})[axis] = dim
    spec = pytree.tree_structure(given)
    shapes = [wanted.get(path) for path in paths]
    nested: dict[str, Any] = pytree.tree_unflatten(shapes, spec)
    return nested


def _roots(matches: Sequence[tuple[str, re.Match[str]]]) -> dict[str, Any]:
    """Name → its `Dim`, with the bounds that any of the texts gives."""
    import torch

    bounds: dict[str, tuple[str, str]] = {}
    for text, match in matches:
        if match["low"] is None:
            continue
        told = (match["low"], match["high"])
        if bounds.setdefault(match["name"], told) != told:
            raise OptionError(f"--dynamic {text}: {match['name']} has other bounds before")
    roots = {}
    for text, match in matches:
        name = match["name"]
        low, high = bounds.get(name, ("", ""))
        if low and high and int(low) >= int(high):
            raise OptionError(f"--dynamic {text}: {low}..{high} holds no two values")
        given = {k: int(v) for k, v in (("min", low), ("max", high)) if v}
        roots[name] = torch.export.Dim(name, **given)
    return roots


def _function_name(forward: Any) -> str:
    owner = getattr(forward, "__self__", None)
    name = getattr(forward, "__name__", "forward")
    return f"{type(owner).__name__}.{name}" if owner is not None else str(name)
