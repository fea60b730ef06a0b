"""What every value is called in every method, after the original's own variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch2mlx.compiler.builder import Value
from torch2mlx.compiler.codegen import source
from torch2mlx.compiler.codegen.blocks import Block, Item
from torch2mlx.compiler.codegen.statements import Groups, callee_path
from torch2mlx.compiler.codegen.tree import local_name

__all__ = ["Names", "unused"]


def unused(wanted: str, names: list[str]) -> str:
    """The name, numbered if it is taken."""
    name, number = wanted, 2
    while name in names:
        name, number = f"{wanted}_{number}", number + 1
    return name


class Names:
    """Names of parameters and variables.

    Args:
        roots: from `partition`, one for every method.
        inputs: id of an input of the root → its name.
        weights: id of a weight → its qualified name.

    Attributes:
        parameters: id of a block → names of the values that it takes.
        statements: id of a value → the variable that the statement around its call assigns.
    """

    def __init__(
        self, roots: Sequence[Block], inputs: Mapping[int, str], weights: Mapping[int, str]
    ) -> None:
        self.weights = weights
        self.scopes: dict[int, dict[int, str]] = {}
        self.statements: dict[int, str] = {}
        self.parameters: dict[int, list[str]] = {}
        for root in roots:
            self._enter(root, dict(inputs))

    def of(self, block: Block, value: Value) -> str:
        """The variable of a value in a block's method; "" if the original has none."""
        return self.scopes[id(block)].get(id(value), "")

    def _enter(self, block: Block, given: dict[int, str]) -> None:
        scope = self.scopes[id(block)] = given
        groups = Groups(block)
        for group in dict.fromkeys(groups.of):
            items = groups.items(group)
            outputs = groups.live_outs(group)
            names = source.targets(*items[0].place)
            if len(names) >= len(outputs) == 1 or len(names) == len(outputs):
                scope |= {id(v): n for v, n in zip(outputs, names, strict=False)}
            for item in items:
                self._name(item, scope, names)
                if names:
                    self.statements |= {id(v): names[0] for v in item.outputs}
        for item in block.items:
            if isinstance(item.what, Block):
                inner = self._parameters(item.what, item, scope)
                self.parameters[id(item.what)] = inner
                ids = [id(v) for v in item.what.inputs]
                self._enter(item.what, dict(zip(ids, inner, strict=True)))
                for value in item.outputs:
                    # What the caller does not name keeps the name that it was returned by.
                    scope.setdefault(id(value), self.of(item.what, value))

    def _name(self, item: Item, scope: dict[int, str], targets: list[str]) -> None:
        """Name what a statement makes on the way."""
        if len(item.outputs) != 1 or id(item.outputs[0]) in scope or not callee_path(item):
            return
        parts = [p for p in callee_path(item).split(".") if not p.isdigit()]
        name = targets[0] if item.chained and len(targets) == 1 else parts[-1] if parts else "x"
        scope[id(item.outputs[0])] = local_name(name)

    def _parameters(self, block: Block, item: Item, scope: Mapping[int, str]) -> list[str]:
        """What a module's method calls the values that it takes."""
        given = source.parameters(block.frame.file, block.frame.line)
        outer = [scope.get(id(v), v.name) for v in block.inputs]
        names = [""] * len(block.inputs)
        for position, value in enumerate(block.inputs):
            weight = self.weights.get(id(value))
            if value.name == "cache":
                names[position] = unused("cache", names)
            elif weight:
                names[position] = unused(local_name(weight.rpartition(".")[2]), names)
        for parameter, variable in _arguments(item, block.path, given).items():
            renamed = source.aliases(*item.place).get(variable)
            for same in (variable, renamed):
                found = [i for i, n in enumerate(outer) if n == same and not names[i]]
                if len(found) == 1 and parameter not in names:
                    names[found[0]] = parameter
        for position, name in enumerate(outer):
            if not names[position] and name in given and name not in names:
                names[position] = name
        free = [p for p in given if p not in names]
        unknown = [i for i, n in enumerate(names) if not n]
        for position in unknown:
            wanted = free[0] if len(unknown) == 1 and free else outer[position] or "x"
            names[position] = unused(wanted if wanted in free else local_name(wanted), names)
        return names


def _arguments(item: Item, path: str, parameters: tuple[str, ...]) -> dict[str, str]:
    """Parameter of the called module → variable that it is given."""
    parts = [p for p in path.split(".") if not p.isdigit()]
    if not item.place[0] or not parts:
        return {}
    positional, keywords = source.call_arguments(*item.place, parts[-1])
    found = {parameters[i]: name for i, name in positional.items() if i < len(parameters)}
    return found | {k: name for k, name in keywords.items() if k in parameters}
