"""Lines of a module's source that hold only for some values of a dynamic extent."""

from __future__ import annotations

import linecache
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Guard", "recording_guards", "user_place", "violated_ranges"]

_PACKAGE = str(Path(__file__).parents[1])
_SHOWN = 3


@dataclass(frozen=True)
class Guard:
    """A condition on extents that export took for granted.

    Attributes:
        numbers: constants in it, and what an equation gives.
        place: "file:line" and code of the user's statement.
    """

    numbers: frozenset[int]
    place: str


@contextmanager
def recording_guards() -> Iterator[list[Guard]]:
    """While it lasts, what torch assumes of extents is noted with the user's line."""
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    guards: list[Guard] = []
    original = ShapeEnv._log_guard

    def noting(self: Any, prefix: str, g: Any, forcing_spec: bool) -> None:
        place = user_place()
        if place:
            guards.append(Guard(_numbers(g), place))
        original(self, prefix, g, forcing_spec)

    ShapeEnv._log_guard = noting  # type: ignore[method-assign]
    try:
        yield guards
    finally:
        ShapeEnv._log_guard = original  # type: ignore[method-assign]


def _numbers(guard: Any) -> frozenset[int]:
    from torch.utils._sympy.solve import try_solve

    numbers = {int(n) for n in guard.atoms() if n.is_Integer}
    if guard.is_Equality and len(guard.free_symbols) == 1:  # 4*batch == 12
        solved = try_solve(guard, next(iter(guard.free_symbols)))
        if solved is not None and solved[1].is_Integer:
            numbers = {int(solved[1])}
    return frozenset(numbers)


def violated_ranges(text: str, guards: Sequence[Guard]) -> list[str]:
    """Why dynamic extents cannot take every value, one text for each; [] for other errors.

    Args:
        text: of torch's error.
        guards: what was noted until then.
    """
    if not text.startswith("Constraints violated"):
        return []
    _, _, suggestions = text.partition("Suggested fixes:")
    reasons = []
    for name, remedy in re.findall(r"^\s*(\w+) = (\S.*)$", suggestions, re.MULTILINE):
        numbers = {int(n) for n in re.findall(r"\d+", remedy)}
        # A bound may be written as < or as <=.
        near = {n + step for n in numbers for step in (-1, 0, 1)} if "Dim" in remedy else numbers
        places = list(dict.fromkeys(g.place for g in guards if g.numbers & near))
        where = f", at {'; '.join(places[:_SHOWN])}" if places else ""
        if "Dim" not in remedy and numbers:
            reasons.append(
                f"dynamic extent {name}: the code makes a constant of it ({remedy}){where}; "
                f"{_remedy(name, remedy, places)}"
            )
        else:
            reasons.append(
                f"dynamic extent {name}: the module computes in one way for some of its values "
                f"only{where}; torch suggests {name} = {remedy}"
            )
    return reasons


def _remedy(name: str, remedy: str, places: Sequence[str]) -> str:
    fixed = f"leave out {name}, or keep the size a number of the input"
    if any(re.search(r"\blen\(", place) for place in places):
        return f"{fixed}: x.shape[0] follows it, len(x) does not"
    return f"{fixed}, as x.shape[0] or -1 does"


def user_place() -> str:
    """The innermost frame outside of torch and this package."""
    import torch

    folder = str(Path(torch.__file__).parent)
    for frame, line in traceback.walk_stack(sys._getframe(1)):
        file = frame.f_code.co_filename
        if file.startswith((_PACKAGE, folder, "<")) or "/sympy/" in file:
            continue
        code = linecache.getline(file, line).strip()
        return f"{file}:{line} ({code})" if code else f"{file}:{line}"
    return ""
