"""Which calls make one statement, and which are written inside another."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch2mlx.compiler.builder import Value
from torch2mlx.compiler.codegen import source
from torch2mlx.compiler.codegen.blocks import Block, Item
from torch2mlx.compiler.layers import LayerUse

__all__ = ["Groups", "Nesting", "callee_path"]

_LARGEST_EXPRESSION = 8
"""Calls in one statement; the length of a line is the other limit."""


def callee_path(item: Item) -> str:
    """Path of the module that an item calls; "" if it calls a function."""
    if isinstance(item.what, Block):
        return item.what.path
    function = item.what.function
    return function.layer.path if isinstance(function, LayerUse) else ""


def _pattern(path: str) -> str:
    """The path with "#" for indices of lists."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "#", path)


class Groups:
    """Which items come from one statement of the original.

    Attributes:
        of: number of the group of every item.
    """

    def __init__(self, block: Block) -> None:
        self.block = block
        self.of: list[int] = []
        previous: Any = None
        number = -1
        called: dict[str, str] = {}
        for item in block.items:
            key = source.statement(*item.place) if item.place[0] else object()
            path = callee_path(item)
            shape = _pattern(path)
            # A container calls its modules in one statement; a loop, in one statement each.
            again = path and called.get(shape, path) != path and not item.chained
            if key != previous or again:
                number += 1
                called = {}
            if path:
                called[shape] = path
            previous = key
            self.of.append(number)

    def items(self, group: int) -> list[Item]:
        """The items of a group, in order."""
        return [i for i, g in zip(self.block.items, self.of, strict=True) if g == group]

    def live_outs(self, group: int) -> list[Value]:
        """Values made in a group and used outside it."""
        block = self.block
        others = {
            id(v) for i, g in zip(block.items, self.of, strict=True) if g != group for v in i.inputs
        }
        others |= {id(v) for v in (*block.outputs, *block.states.values())}
        return [v for i in self.items(group) for v in i.outputs if id(v) in others]


class Nesting:
    """Which items of a block are written inside the item that uses them.

    Within a statement of the original; from one to the next where both assign the same
    variable; and in the return.  Not from one turn of a loop to the next.

    Args:
        block: one call of a module.
        name: what the original calls a value.
        fixed: items that may not be moved.
        split: items that get a statement of their own all the same.

    Attributes:
        inlined: the items.
        last_use: id of a value → index of the last statement that uses it.
        users: id of a value → indices of the items that use it; the number of items for the
            return.
    """

    def __init__(
        self,
        block: Block,
        name: Callable[[Value], str],
        fixed: Callable[[Item], bool],
        split: Collection[int] = (),
    ) -> None:
        items, end = block.items, len(block.items)
        self.users = _users(block)
        self.inlined: set[int] = set()
        self.children: dict[int, list[int]] = {}
        groups = [*Groups(block).of, -1]
        if items and source.is_return(*items[-1].place):
            groups[end] = groups[end - 1]
        size = [1] * (end + 1)
        patterns = [{_pattern(p): p} if (p := callee_path(i)) else {} for i in items] + [{}]
        counts = Counter(pattern for found in patterns for pattern in found)
        chained = {id(v) for item in items if item.chained for v in item.outputs}

        def follows_chained(item: Item) -> bool:
            return any(id(v) in chained for v in item.inputs)

        consumer: dict[int, int] = {}
        for index, item in enumerate(items):
            made = [v for v in item.outputs if id(v) in self.users]
            if index in split or len(item.outputs) != 1 or len(made) != 1 or fixed(item):
                continue
            used = self.users[id(made[0])]
            if len(used) != 1:
                continue
            user = used[0]
            same = groups[user] == groups[index]
            if user == end:
                near = same or (len(block.outputs) == 1 and not block.states)
            else:
                wanted = [name(v) for v in items[user].outputs]
                near = same or wanted == [name(made[0])] != [""]
            looped = any(patterns[user].get(k, p) != p for k, p in patterns[index].items())
            # The modules of a container are called one after the other, the last one too.
            linked = user < end and items[user].chained
            looped = looped or (item.chained and (linked or follows_chained(item)))
            # One turn of a loop is like the others, so its result is assigned as theirs are.
            turns = any("#" in p and counts[p] > 1 for p in patterns[index])
            if not near or looped or (turns and (user == end or not same)):
                continue
            if size[user] + size[index] <= _LARGEST_EXPRESSION:
                size[user] += size[index]
                if not item.chained:
                    patterns[user] = {**patterns[index], **patterns[user]}
                consumer[index] = user
                self.inlined.add(index)
                self.children.setdefault(user, []).append(index)
        emitted = list(range(end + 1))
        for index in sorted(consumer, reverse=True):
            emitted[index] = emitted[consumer[index]]
        self.last_use = {
            value: max(emitted[index] for index in used) for value, used in self.users.items()
        }

    def inside(self, index: int) -> list[int]:
        """The items written inside an item."""
        found = list(self.children.get(index, ()))
        return found + [i for child in found for i in self.inside(child)]


def _users(block: Block) -> Mapping[int, list[int]]:
    users: dict[int, list[int]] = {}
    for index, item in enumerate(block.items):
        for value in item.inputs:
            users.setdefault(id(value), []).append(index)
    for value in (*block.outputs, *block.states.values()):
        users.setdefault(id(value), []).append(len(block.items))
    return users
