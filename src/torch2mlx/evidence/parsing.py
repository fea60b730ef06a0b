"""JSON from anywhere into frozen dataclasses: every type is checked, every problem has a place."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from torch2mlx.errors import SourceError
from torch2mlx.sources.local_files import read_small

__all__ = ["parse", "parse_file", "plain"]

T = TypeVar("T")

_JSON_NAMES: dict[Any, str] = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def parse_file(kind: type[T], path: Path, largest: int) -> T:
    """A dataclass, or a tuple of them, from a JSON file; see `parse`.

    Args:
        kind: the dataclass.
        path: of the file.
        largest: bytes that are read at most.

    Raises:
        SourceError: it is missing, too large, no JSON, or an entry has another type; the message
            names the entry.
    """
    try:
        size = path.stat().st_size
        if size > largest:
            raise SourceError(f"{path}: damaged: {size:,} bytes; at most {largest:,} are expected")
        raw = json.loads(read_small(path), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise SourceError(f"{path}: not found") from None
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: damaged: no valid JSON: {error}") from None
    return parse(kind, raw, path)


def parse(kind: type[T], raw: Any, path: Path) -> T:
    """A dataclass from plain values.

    Fields are of the types `str`, `int`, `float`, `bool`, `None`, dataclasses, `tuple[X, ...]`,
    `Mapping[str, X]`, `Any`, and unions with `None`.  Entries that no field has are ignored: a
    newer version may have written them.

    Args:
        kind: the dataclass.
        raw: as JSON has them.
        path: of the file that they come from, for the message.

    Raises:
        SourceError: an entry is missing or has another type; the message names it.
    """
    try:
        found: T = _parse(kind, raw, "")
    except _MisfitError as problem:
        raise SourceError(f"{path}: damaged: {problem}") from None
    return found


def plain(value: Any) -> Any:
    """A dataclass as JSON can hold it: tuples as lists, infinities and NaN as None."""
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


class _MisfitError(Exception):
    """An entry that has another type than its field."""


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _parse(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _parse(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple:
        items = _typed(list, value, where)
        return tuple(_parse(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(items))
    if origin is not None:  # Mapping[str, X]
        entries = _typed(dict, value, where).items()
        return {k: _parse(arguments[1], v, f"{where}.{k}" if where else k) for k, v in entries}
    if is_dataclass(kind):
        return _dataclass(kind, _typed(dict, value, where), where)
    if kind is float and type(value) is int:
        return float(value)
    return _typed(kind, value, where)


def _dataclass(kind: Any, raw: dict[str, Any], where: str) -> Any:
    found = {}
    for field in fields(kind):
        place = f"{where}.{field.name}" if where else field.name
        if field.name in raw:
            found[field.name] = _parse(_hints(kind)[field.name], raw[field.name], place)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise _MisfitError(f"entry {place!r} is missing")
    return kind(**found)


def _typed(kind: Any, value: Any, where: str) -> Any:
    if type(value) is not kind:
        found = _JSON_NAMES.get(type(value), "something else")
        raise _MisfitError(f"entry {where[:200]!r} is {found}, not {_JSON_NAMES[kind]}")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
