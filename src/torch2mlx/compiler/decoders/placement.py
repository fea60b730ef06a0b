"""Caches handed down layer by layer, masks made where they are first known.

Before:  update(k, v, cache, 3)            in layer 3, of a cache of all layers
         mask(cache, ..., window)          not knowing whose cache
After:   cache[3] taken in the module that holds the layers; the layer takes it as an argument
         layer_mask(cache[0], ...)         of the first layer that uses this mask
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch2mlx.compiler.decoders.operators import operators
from torch2mlx.compiler.graph import Frame, Graph, Node, Origin, Ref, TensorType, references
from torch2mlx.errors import CompileError

__all__ = ["CacheSlot", "Placed", "place"]


@dataclass(frozen=True)
class CacheSlot:
    """What one entry of the list of caches keeps.

    Attributes:
        layer: number of the layer in the original.
        window: tokens that its attention sees, 0 for all.
        states: number of states of a state-space layer, 0 for keys and values alone.
        keys: it keeps keys and values; with states as well it is a `CacheList` of these two.
    """

    layer: int
    window: int = 0
    states: int = 0
    keys: bool = True


@dataclass(frozen=True)
class Placed:
    """A graph with its caches.

    Attributes:
        graph: takes the list of caches as `cache`.
        slots: of the list.
        layers: path of the list of decoder layers.
        renamed: weights of experts under the names that layers need → their own.
    """

    graph: Graph
    slots: tuple[CacheSlot, ...]
    layers: str
    renamed: Mapping[str, str]


def place(graph: Graph) -> Placed:
    """Rewrite a traced graph.

    Raises:
        CompileError: it keeps nothing, or what it keeps cannot be told by layer.
    """
    return _Placement(graph).run()


class _Placement:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.ops = operators()
        self.nodes = {n.name: n for n in graph.nodes}
        self.users: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for ref in references((node.args, node.kwargs)):
                self.users.setdefault(ref.name, []).append(node)
        self.updates = [n for n in graph.nodes if n.target is self.ops.update.default]
        names = (
            *("mamba2_scan", "selective_scan", "delta_rule", "lightning_attention"),
            "keep_columns",
        )
        scans = [getattr(self.ops, name).default for name in names]
        self.scans = [n for n in graph.nodes if n.target in scans]
        self.kept = [n for n in graph.nodes if n in self.updates or n in self.scans]
        self.taken: set[str] = set()
        self.windows: dict[int, int] = {}
        self.before: dict[str, list[Node]] = {}
        self.new: dict[str, Node] = {}

    def run(self) -> Placed:
        graph = self.graph
        if not self.kept:
            raise CompileError(graph.class_name, ["it keeps nothing in its cache"])
        keys = {int(n.args[3]) for n in self.updates}
        states = {int(n.args[2]) for n in self.scans}
        self.both = keys & states
        numbers = sorted(keys | states)
        self.numbers = numbers
        self.slot_of = {number: slot for slot, number in enumerate(numbers)}
        cache = next(i for i in graph.inputs if i.name == "cache")
        self.total = cache.type.shape[0]
        # A list of caches, not a tensor: nobody reads an extent off it.
        extents = (len(numbers), *_PARTS[bool(self.both)])
        listed = replace(cache, type=TensorType(cache.type.dtype, extents))
        graph = replace(graph, inputs=tuple(listed if i is cache else i for i in graph.inputs))
        self._take_layer_caches()
        for node in graph.nodes:
            if node.target is self.ops.mask.default:
                self._place_mask(node)
            elif node.target is self.ops.frequencies.default:
                name = f"{node.name}_cache"
                self._add_cache(node.name, name, self._keys_slot(), node.origin)
                given = (*node.args[:2], Ref(name), *node.args[3:])
                self.new[node.name] = replace(node, args=given)
            elif node.target is self.ops.positions.default:
                self._place_positions(node)
            elif node.target is self.ops.attention.default:
                self._place_attention(node)
        moved = {n.name for group in self.before.values() for n in group}
        result: list[Node] = []
        for node in graph.nodes:
            result += self.before.get(node.name, [])
            if node.name not in moved:
                result.append(self.new.get(node.name, node))
        slots = tuple(
            CacheSlot(number, self.windows.get(number, 0), self._states(number), number in keys)
            for number in numbers
        )
        placed, renamed = _rename_experts(replace(graph, nodes=tuple(result)), self.ops)
        layers = _layer_path(self.kept[0].origin).rpartition(".")[0]
        return Placed(placed, slots, layers, renamed)

    def _states(self, number: int) -> int:
        """How many states a layer keeps."""
        return max((int(n.args[3]) + 1 for n in self.scans if n.args[2] == number), default=0)

    def _add_cache(
        self, before: str, name: str, slot: int, origin: Origin, states: bool = False
    ) -> None:
        """Take a layer's cache out of the list, before a node."""
        target = self.ops.layer_cache.default
        made = self.before.setdefault(before, [])
        kind = TensorType(_cache_dtype(), _PARTS[bool(self.both)])
        whole = name
        if self.numbers[slot] in self.both:
            whole = f"{name}_whole"
            part = TensorType(_cache_dtype(), ())
        made.append(Node(whole, target, (Ref("cache"), slot), {}, (kind,), False, origin))
        if whole != name:
            chosen = (Ref(whole), 0 if states else 1)
            made.append(Node(name, target, chosen, {}, (part,), False, origin))

    def _take_layer_caches(self) -> None:
        firsts = self._first_in_layer()
        number_in = {}
        for node in self.kept:
            number = int(node.args[3] if node in self.updates else node.args[2])
            number_in[_layer_path(node.origin)] = number
            slot = self.slot_of[number]
            states = node in self.scans
            name = f"states_{slot}" if states else f"cache_{slot}"
            if name not in self.taken:
                self.taken.add(name)
                first = firsts.get(_layer_path(node.origin), node.name)
                outside = Origin(_outside_layers(node.origin))
                self._add_cache(first, name, slot, outside, states)
            if node in self.scans:
                given = (node.args[0], Ref(name), *node.args[2:])
                self.new[node.name] = replace(node, args=given)
                continue
            given = (*node.args[:2], Ref(name), self.total)
            self.new[node.name] = replace(node, target=self.ops.fetch.default, args=given)
        for node in self.graph.nodes:
            if node.target is self.ops.without_padding.default:
                number = number_in[_layer_path(node.origin)]
                cache = Ref(f"states_{self.slot_of[number]}")
                self.new[node.name] = replace(node, args=(node.args[0], cache, number))

    def _place_mask(self, node: Node) -> None:
        slot, array = self._mask_use(node)
        name = f"{node.name}_cache"
        self._add_cache(node.name, name, slot, node.origin)
        _, batch, length, window, chunk = node.args
        given = (Ref(name), batch, length, self.total, window, chunk, array)
        self.new[node.name] = replace(node, target=self.ops.layer_mask.default, args=given)

    def _place_positions(self, node: Node) -> None:
        """Before their first use, in the module that holds the layers or outside of it."""
        users = self.users.get(node.name, [])
        if not users:
            return
        origin = self._above_layers(_common(users))
        name = f"{node.name}_cache"
        self._add_cache(users[0].name, name, self._keys_slot(), origin)
        moved = replace(node, args=(node.args[0], Ref(name)), origin=origin)
        self.before[users[0].name].append(moved)

    def _place_attention(self, node: Node) -> None:
        number = self._layer_of(node.args[1])
        own = None if number is None else Ref(f"cache_{self.slot_of[number]}")
        self.new[node.name] = replace(node, args=(*node.args[:4], own, *node.args[5:]))
        mask = self.nodes.get(node.args[3].name) if isinstance(node.args[3], Ref) else None
        if number is not None and mask is not None and mask.target is self.ops.mask.default:
            self.windows[number] = int(mask.args[3])

    def _first_in_layer(self) -> dict[str, str]:
        """Path of a layer → the first node inside."""
        found: dict[str, str] = {}
        for node in self.graph.nodes:
            found.setdefault(_layer_path(node.origin), node.name)
        return found

    def _above_layers(self, origin: Origin) -> Origin:
        """The part of an origin that the decoder layers are in as well."""
        path = _layer_path(self.kept[0].origin)
        frames = [f for f in origin.frames if not f.path or path.startswith(f"{f.path}.")]
        return Origin(tuple(frames))

    def _layer_of(self, keys: Any) -> int | None:
        """The layer whose cache gave the keys."""
        node = self.nodes.get(keys.name) if isinstance(keys, Ref) else None
        while node is not None and node.target is not self.ops.update.default:
            refs = list(references((node.args, node.kwargs)))
            node = self.nodes.get(refs[0].name) if len(refs) == 1 else None
        return int(node.args[3]) if node is not None else None

    def _mask_use(self, mask: Node) -> tuple[int, bool]:
        """The slot whose cache makes a mask, and whether the model itself computes with it."""
        users = self.users.get(mask.name, [])
        attention = [n for n in users if n.target is self.ops.attention.default]
        for node in attention:
            number = self._layer_of(node.args[1])
            if number is not None:
                return self.slot_of[number], len(attention) < len(users)
        return self._keys_slot(), True

    def _keys_slot(self) -> int:
        """The first slot with keys: states do not count tokens."""
        if not self.updates:
            raise CompileError(self.graph.class_name, ["it needs positions, and keeps no keys"])
        return min(self.slot_of[int(n.args[3])] for n in self.updates)


_PARTS: dict[bool, tuple[int, ...]] = {False: (), True: (2,)}
"""Extents that stand for one entry of the list: where some have two parts, all do."""


def _cache_dtype() -> Any:
    import torch

    return torch.float32


def _layer_path(origin: Origin) -> str:
    """Path of the decoder layer that a node belongs to; "" outside of all."""
    for frame in origin.frames:
        if frame.path.rpartition(".")[2].isdigit():
            return frame.path
    return ""


def _outside_layers(origin: Origin) -> tuple[Frame, ...]:
    frames = []
    for frame in origin.frames:
        if frame.path.rpartition(".")[2].isdigit():
            break
        # Without a line, so that it is no part of the statement that calls the layer.
        frames.append(replace(frame, file="", line=0))
    return tuple(frames)


def _common(nodes: Iterable[Node]) -> Origin:
    """The innermost call that all nodes happen in."""
    frames: tuple[Frame, ...] | None = None
    for node in nodes:
        given = node.origin.frames
        if frames is None:
            frames = given
            continue
        depth = 0
        while depth < min(len(frames), len(given)) and frames[depth].call == given[depth].call:
            depth += 1
        frames = frames[:depth]
    return Origin(frames or ())


def _rename_experts(graph: Graph, ops: Any) -> tuple[Graph, dict[str, str]]:
    """Stacked weights of experts as the parameters of layers.

    Before: experts.down_proj, experts.down_proj_bias
    After:  experts.down_proj.weight, experts.down_proj.bias
    """
    names: dict[str, str] = {}
    for node in graph.nodes:
        if node.target is ops.switch_linear.default:
            weight = node.args[1].name
            names[weight] = f"{weight}.weight"
            if node.args[2] is not None:
                names[node.args[2].name] = f"{weight}.bias"
    if not names:
        return graph, {}

    def renamed(value: Any) -> Any:
        if isinstance(value, Ref):
            return Ref(names.get(value.name, value.name), value.index)
        if isinstance(value, list | tuple):
            return type(value)(map(renamed, value))
        return value

    nodes = tuple(
        replace(n, args=renamed(n.args), kwargs={k: renamed(v) for k, v in n.kwargs.items()})
        for n in graph.nodes
    )
    weights = tuple(replace(w, name=names.get(w.name, w.name)) for w in graph.weights)
    return replace(graph, nodes=nodes, weights=weights), {new: old for old, new in names.items()}
