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
_TRIED = 1024  # extents
_UNMET = re.compile(
    r"Not all values of (\w+) = (\S+) in the specified range satisfy the generated guard (.+?)\.?$",
    re.MULTILINE,
)


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
    fixes = re.findall(r"^\s*(\w+) = (\S.*)$", suggestions, re.MULTILINE)
    reasons = [] if fixes else _unsuggested(text, guards)
    factors = {f"_{name}" for name, remedy in fixes if f"_{name}" in remedy}
    for name, remedy in fixes:
        if name in factors:
            continue
        numbers = {int(n) for n in re.findall(r"\d+", remedy)}
        # A bound may be written as < or as <=.
        near = {n + step for n in numbers for step in (-1, 0, 1)} if "Dim" in remedy else numbers
        places = list(dict.fromkeys(g.place for g in guards if g.numbers & near))
        where = f", at {'; '.join(places[:_SHOWN])}" if places else ""
        if f"_{name}" in remedy:
            derived = remedy.replace(f"_{name}", name)
            reasons.append(
                f"dynamic extent {name}: the module takes multiples only{where}; derive it, as "
                f"--dynamic argument:axis={derived} does"
            )
        elif "Dim" not in remedy and numbers:
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


def _unsuggested(text: str, guards: Sequence[Guard]) -> list[str]:
    """The same where torch only says which conditions do not hold for every value."""
    conditions: dict[str, list[str]] = {}
    for name, size, condition in _UNMET.findall(text):
        conditions.setdefault(name, []).append(condition.replace(size, name))
    reasons = []
    for name, unmet in conditions.items():
        numbers = [frozenset(map(int, re.findall(r"\d+", c))) for c in unmet]
        places = list(
            dict.fromkeys(g.place for g in guards if frozenset(map(abs, g.numbers)) in numbers)
        )
        where = f", at {'; '.join(places[:_SHOWN])}" if places else ""
        least = _least(name, unmet)
        remedy = (
            f"it does so from {least} on: {name} = Dim({name!r}, min={least}), or "
            f"{name}:{least}..MAX in --dynamic"
            if least
            else f"give {name} bounds within which {' and '.join(unmet[:_SHOWN])}"
        )
        reasons.append(
            f"dynamic extent {name}: the module computes in one way for some of its values "
            f"only{where}; {remedy}"
        )
    return reasons


def _least(name: str, conditions: Sequence[str]) -> int | None:
    """The extent from which on conditions hold; None where they are no bound, or not arithmetic."""
    plain = re.compile(rf"(\b{name}\b|[\d\s()+\-*/%<>=!])*")
    if not all(plain.fullmatch(c) for c in conditions):
        return None
    code = [compile(c, "condition", "eval") for c in conditions]

    def holds(extent: int) -> bool:
        try:
            return all(eval(c, {"__builtins__": {}}, {name: extent}) for c in code)
        except ArithmeticError:
            return False

    least = next((n for n in range(_TRIED, 0, -1) if not holds(n)), 0) + 1
    return least if least <= _TRIED // 2 else None


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
