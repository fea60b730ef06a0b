"""What builds a module's attributes, with numbers that may become parameters.

Modules of one class may differ in sizes: their constructors are equal up to such numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch2mlx.compiler.codegen.expressions import literal

__all__ = ["Child", "Constructor", "Hole", "Items", "Joined", "Piece", "Text", "parameters_of"]


class _Parametrized(Protocol):
    name: str

    def parameters(self) -> list[tuple[str, int]]:
        """Name of each parameter, and the first hole that it fills."""


class Piece(Protocol):
    """A part of a constructor."""

    def template(self) -> str:
        """The text, with "#" for every number."""

    def holes(self) -> list[Hole]:
        """Every number, in order."""

    def write(self, sources: Iterator[str]) -> str:
        """The text, given the source of every number."""


@dataclass(frozen=True)
class Text:
    """A part that never varies."""

    text: str

    def template(self) -> str:
        return self.text

    def holes(self) -> list[Hole]:
        return []

    def write(self, sources: Iterator[str]) -> str:
        return self.text


@dataclass(frozen=True)
class Hole:
    """A number, and what to call it if it varies."""

    value: Any
    name: str

    def template(self) -> str:
        return "#"

    def holes(self) -> list[Hole]:
        return [self]

    def write(self, sources: Iterator[str]) -> str:
        return next(sources)


@dataclass(frozen=True)
class Child:
    """A module of a generated class."""

    kind: _Parametrized
    numbers: tuple[Hole, ...]

    def template(self) -> str:
        return f"{self.kind.name}({'#' * len(self.numbers)})"

    def holes(self) -> list[Hole]:
        return list(self.numbers)

    def write(self, sources: Iterator[str]) -> str:
        given = [next(sources) for _ in self.numbers]
        return f"{self.kind.name}({', '.join(given[at] for _, at in self.kind.parameters())})"


@dataclass(frozen=True)
class Constructor:
    """A layer of `mlx.nn`; options that have their usual value in all modules are left out.

    Attributes:
        name: of the class.
        args: positional arguments.
        options: name, value, and the source of the usual value.
    """

    name: str
    args: tuple[Piece, ...]
    options: tuple[tuple[str, Piece, str], ...]

    def template(self) -> str:
        given = [a.template() for a in self.args]
        given += [f"{key}={value.template()}" for key, value, _ in self.options]
        return f"{self.name}({', '.join(given)})"

    def holes(self) -> list[Hole]:
        pieces = [*self.args, *(value for _, value, _ in self.options)]
        return [h for p in pieces for h in p.holes()]

    def write(self, sources: Iterator[str]) -> str:
        given = [a.write(sources) for a in self.args]
        for key, value, usual in self.options:
            text = value.write(sources)
            if text != usual:
                given.append(f"{key}={text}")
        return f"{self.name}({', '.join(given)})"


@dataclass(frozen=True)
class Joined:
    """Parts one after the other."""

    parts: tuple[Piece, ...]

    def template(self) -> str:
        return "".join(p.template() for p in self.parts)

    def holes(self) -> list[Hole]:
        return [h for p in self.parts for h in p.holes()]

    def write(self, sources: Iterator[str]) -> str:
        return "".join(p.write(sources) for p in self.parts)


@dataclass(frozen=True)
class Items:
    """A list; equal neighbours become a comprehension."""

    items: tuple[Piece, ...]

    def template(self) -> str:
        return f"[{', '.join(p.template() for p in self.items)}]"

    def holes(self) -> list[Hole]:
        return [h for p in self.items for h in p.holes()]

    def write(self, sources: Iterator[str]) -> str:
        runs: list[list[Any]] = []
        for text in [p.write(sources) for p in self.items]:
            if runs and runs[-1][0] == text:
                runs[-1][1] += 1
            else:
                runs.append([text, 1])
        if len(runs) == 1 and runs[0][1] > 1:
            return f"[{runs[0][0]} for _ in range({runs[0][1]})]"
        parts: list[str] = []
        for text, count in runs:
            parts += [text] * count if count < 3 else [f"*[{text} for _ in range({count})]"]
        return f"[{', '.join(parts)}]"


def parameters_of(
    instances: Sequence[Sequence[Hole]],
) -> tuple[list[tuple[str, int]], list[str]]:
    """Which numbers of equal constructors become parameters.

    Args:
        instances: the numbers of every module of a class.

    Returns:
        Name and first hole of each parameter; and for every hole its source: the parameter,
        or the number itself where all modules agree.
    """
    names: dict[tuple[Any, ...], tuple[str, int]] = {}
    sources = []
    for position, hole in enumerate(instances[0]):
        column = tuple(literal(numbers[position].value) for numbers in instances)
        if len(set(column)) == 1:
            sources.append(column[0])
            continue
        if column not in names:
            taken = {name for name, _ in names.values()}
            name, count = hole.name, 2
            while name in taken:
                name, count = f"{hole.name}_{count}", count + 1
            names[column] = (name, position)
        sources.append(names[column][0])
    return list(names.values()), sources
