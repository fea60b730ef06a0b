"""The module tree of the generated model: which attribute holds what."""

from __future__ import annotations

import keyword
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from unicodedata import normalize

from torch2mlx.compiler.graph import Weight
from torch2mlx.compiler.layers import Layer

__all__ = ["ModuleTree", "Slot", "attribute_name", "local_name", "method_name"]


@cache
def _module_attributes() -> frozenset[str]:
    from mlx.nn.layers.base import Module

    make: Any = Module
    return frozenset(dir(make()))


def attribute_name(component: str) -> str:
    """The attribute for a component of a path.

    MLX skips names that begin with "_", and a method of `nn.Module` (a dict) hides an
    attribute of its name.
    """
    name = component
    if name.startswith("_"):
        name = name.lstrip("_") + "_"
    if name in _module_attributes():
        name += "_"
    return local_name(name)


def method_name(method: str) -> str:
    """What a method of the original's root is called in the generated class."""
    return "__call__" if method == "forward" else attribute_name(method)


def local_name(name: str) -> str:
    """The nearest name that Python takes, in the form that Python gives it."""
    name = "".join(c if f"x{c}".isidentifier() else "_" for c in normalize("NFKC", name))
    if not name or name[0].isdigit() or keyword.iskeyword(name):
        name = f"{name}_" if name and not name[0].isdigit() else f"x_{name}"
    return name


@dataclass(eq=False)
class Slot:
    """A place in the tree: a weight, a layer, a generated class, or a plain container."""

    content: Weight | Layer | str | None = None
    children: dict[str, Slot] = field(default_factory=dict)

    @property
    def is_list(self) -> bool:
        return bool(self.children) and all(map(_is_index, self.children))


def _is_index(name: str) -> bool:
    """Whether a name can stand in brackets as it is."""
    return name.isascii() and name.isdecimal() and name == str(int(name))


class ModuleTree:
    """Paths of the original in terms of the generated model.

    Args:
        instances: paths of the modules that become classes.
        layers: by path.
        weights: those that functional code uses.
        order: names of all weights, as the original has them.
    """

    def __init__(
        self,
        instances: list[str],
        layers: dict[str, Layer],
        weights: list[Weight],
        order: list[str],
    ) -> None:
        self.instances = set(instances)
        self.root = Slot("")
        self.attributes = self._attributes([*order, *instances, *layers])
        contents: dict[str, Any] = {path: path for path in instances if path}
        contents |= layers
        contents |= {w.name: w for w in weights}
        first: dict[str, int] = {}
        for position, name in enumerate(order):
            while name:
                first.setdefault(name, position)
                name = name.rpartition(".")[0]
        for path in sorted(contents, key=lambda p: first.get(p, len(order))):
            content = contents[path]
            slot = self.root
            for key in self.keys(path):
                slot = slot.children.setdefault(key, Slot())
            slot.content = content

    def _attributes(self, paths: list[str]) -> dict[str, str]:
        """Path → its attribute or index; siblings have different ones."""
        siblings: dict[str, dict[str, None]] = {}
        for path in paths:
            while path:
                path, _, component = path.rpartition(".")
                siblings.setdefault(path, {})[component] = None
        found: dict[str, str] = {}
        for owner, components in siblings.items():
            class_of_its_own = owner in self.instances
            indices = {c for c in components if _is_index(c)}
            if not class_of_its_own and len(indices) < len(components):
                indices = set()
            # `keys` puts a class's children with numbers into `layers`.
            reserved = {"layers"} if class_of_its_own and indices else set()
            # Who has a name that needs no change keeps it.
            own = {c for c in components if attribute_name(c) == c} - reserved | indices
            taken = own | reserved
            for component in components:
                name = component if component in own else attribute_name(component)
                while component not in own and name in taken:
                    name += "_"
                taken.add(name)
                found[f"{owner}.{component}" if owner else component] = name
        return found

    def keys(self, path: str) -> list[str]:
        """Attribute names and list indices that lead to a path."""
        result: list[str] = []
        prefix = ""
        for component in path.split("."):
            owner, prefix = prefix, f"{prefix}.{component}" if prefix else component
            name = self.attributes.get(prefix) or attribute_name(component)
            if _is_index(name) and owner in self.instances:
                # A class derived from Sequential: MLX keeps such children in `layers`.
                result.append("layers")
            result.append(name)
        return result

    def name(self, path: str) -> str:
        """Name of a parameter in the weight file."""
        return ".".join(self.keys(path))

    def access(self, path: str, owner: str) -> str:
        """Source of the attribute for a path, in a method of the module at `owner`."""
        slot = self.root
        skipped = len(self.keys(owner)) if owner else 0
        text = "self"
        for depth, key in enumerate(self.keys(path)):
            if depth >= skipped:
                text += f"[{key}]" if slot.is_list else f".{key}"
            # A layer brings its own weights, which are no places of the tree.
            slot = Slot() if isinstance(slot.content, Layer) else slot.children[key]
        return text

    def lengths(self, path: str) -> dict[str, int]:
        """Source of every list in the module at a path → its length."""
        found: dict[str, int] = {}

        def visit(slot: Slot, text: str) -> None:
            if slot.is_list:
                found[text] = max(map(int, slot.children)) + 1
            for key, child in slot.children.items():
                if child.content is None:
                    visit(child, f"{text}[{key}]" if slot.is_list else f"{text}.{key}")

        visit(self.slot(path), "self")
        return found

    def layer(self, path: str) -> Layer | None:
        """The layer at a path, if one is there."""
        slot: Slot | None = self.root
        for key in self.keys(path) if path else []:
            slot = slot.children.get(key) if slot is not None else None
        return slot.content if slot is not None and isinstance(slot.content, Layer) else None

    def slot(self, path: str) -> Slot:
        """The place of a path."""
        slot = self.root
        for key in self.keys(path) if path else []:
            slot = slot.children[key]
        return slot
