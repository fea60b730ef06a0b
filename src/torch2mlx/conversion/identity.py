"""What decides the bytes of an output: source files, plan and versions.

Two runs with the same identity write the same bytes, so one may go on where the other stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch2mlx.errors import SourceError
from torch2mlx.planning.expressions import Expr
from torch2mlx.planning.plan import Output, Plan

__all__ = [
    "SourceState",
    "differences",
    "plan_digest",
    "plan_identity",
    "same_work",
    "values_digest",
]

_EDGE = 1 << 16  # bytes at either end of a source file that are hashed
_LISTED = 4


@dataclass(frozen=True)
class SourceState:
    """Source files as they were when a run began.

    Attributes:
        files: for each its size, time of change in ns, and inode.
        edges: SHA-256 of the first and last 64 KiB of each, which hold every header.
    """

    files: Mapping[Path, tuple[int, int, int]]
    edges: Mapping[Path, str]

    @classmethod
    def take(cls, paths: Iterable[Path]) -> SourceState:
        """The present state of files.

        Raises:
            SourceError: a file is gone or cannot be read.
        """
        listed = sorted(set(paths))
        return cls({p: _state(p) for p in listed}, {p: _edges(p) for p in listed})

    def check(self, thorough: bool = False) -> None:
        """Raise SourceError if a file changed since; `thorough` also reads both its ends."""
        for path, before in self.files.items():
            if _state(path) != before or (thorough and _edges(path) != self.edges[path]):
                raise SourceError(
                    f"{path}: changed while it was being converted; wait until nobody writes to "
                    "the checkpoint and run the command again with --restart"
                )

    def to_dict(self, folder: Path) -> dict[str, Any]:
        """Plain values; names are relative to `folder` where they are in it."""
        return {
            p.relative_to(folder).as_posix() if p.is_relative_to(folder) else p.name: {
                "size": size,
                "changed": changed,
                "edges": self.edges[p],
            }
            for p, (size, changed, _) in self.files.items()
        }


def _state(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise SourceError(
            f"{path}: gone while it was being converted: {error.strerror or error}"
        ) from error
    return found.st_size, found.st_mtime_ns, found.st_ino


def _edges(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            digest.update(file.read(_EDGE))
            file.seek(max(0, path.stat().st_size - _EDGE))
            digest.update(file.read(_EDGE))
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def plan_identity(
    plan: Plan, source: Mapping[str, Any], options: Mapping[str, Any], versions: Mapping[str, str]
) -> dict[str, Any]:
    """The identity of a conversion, as plain values.

    Args:
        plan: what is written.
        source: `SourceState.to_dict`.
        options: the user's; they only serve to say in the user's words what changed.
        versions: of the libraries that touch the numbers.
    """
    return {
        "source": dict(source),
        "options": dict(options),
        "versions": dict(versions),
        "plan": plan_digest(plan),
    }


def plan_digest(plan: Plan) -> str:
    """SHA-256 of everything that a plan says about the weight files.

    Functions inside of expressions count by their printed names: what else could change in them
    comes with another config or another version, which are compared by themselves.
    """
    of = _describer()
    digest = hashlib.sha256()
    for output in plan.outputs:
        ready = "" if output.parts is None else of(tuple(output.parts.values()))
        digest.update(_hash(output.name, of(output.expr), repr(output.scheme), ready).encode())
    for shard in plan.shards:
        digest.update(shard.file.encode() + shard.header)
    return digest.hexdigest()


def values_digest(outputs: Iterable[Output]) -> str:
    """SHA-256 of what the values of outputs are made of, before they are quantized."""
    of = _describer()
    digest = hashlib.sha256()
    for output in outputs:
        digest.update(_hash(output.name, of(output.expr)).encode())
    return digest.hexdigest()


def _describer() -> Callable[[Any], str]:
    """A function that tells expressions apart; it keeps what it has told."""
    known: dict[int, str] = {}

    def of(value: Any) -> str:
        if isinstance(value, Expr):
            if id(value) not in known:
                known[id(value)] = _hash(type(value).__name__, *parts(value))
            return known[id(value)]
        if isinstance(value, tuple):
            return f"({','.join(map(of, value))})"
        return repr(value)

    def parts(value: Any) -> list[str]:
        named = ((f.name, getattr(value, f.name)) for f in fields(value))
        return [f"{name}={of(v)}" for name, v in named if not callable(v)]

    return of


def _hash(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def same_work(before: Any, now: Mapping[str, Any]) -> bool:
    """Whether two identities stand for the same bytes: all but "options" is equal."""
    if not isinstance(before, Mapping):
        return False
    keys = {*before, *now} - {"options"}
    return all(key in before and key in now and before[key] == now[key] for key in keys)


def differences(before: Any, now: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, in words."""
    if not isinstance(before, Mapping):
        return ["its journal is damaged"]
    found = []
    for section, title in (("source", "source file"), ("options", "option"), ("versions", "")):
        old, new = before.get(section), now.get(section)
        if not isinstance(old, Mapping) or not isinstance(new, Mapping):
            continue
        changed = [
            _change(section, f"{title} {name}".strip(), old.get(name), new.get(name))
            for name in sorted({*old, *new})
            if old.get(name) != new.get(name)
        ]
        found += changed[:_LISTED]
        if len(changed) > _LISTED:
            found.append(f"{len(changed) - _LISTED} more of the {section}")
    return found or ["the plan is another one"]


def _change(section: str, title: str, old: Any, new: Any) -> str:
    if section == "source":
        how = "is new" if old is None else "is gone" if new is None else "changed"
        return f"{title} {how}"
    return f"{title}: {_value(old)}, now {_value(new)}"


def _value(value: Any) -> str:
    return "not given" if value is None else str(value)[:60]
