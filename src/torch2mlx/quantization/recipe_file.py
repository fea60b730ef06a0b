"""Recipe files: the format of every module in one TOML file, to keep and to share.

    [base]                                  # of every module that nothing below names
    bits = 4
    group_size = 64

    [modules]                               # pattern = format; the last match wins
    "*.v_proj" = 6
    "*.down_proj" = { bits = 6, group_size = 32 }
    "layers.0.*" = { mode = "mxfp8" }
    "lm_head" = "keep"

    [runtime_precision]                     # pattern = type that a module computes in
    "self_attn" = "float32"

Every table may be missing.  Patterns are globs, as `targets.matches` describes them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch2mlx.errors import OptionError
from torch2mlx.quantization.recipe import RECIPES
from torch2mlx.quantization.scheme import Scheme

__all__ = ["RecipeFile", "read_recipe"]

_LARGEST = 1 << 20  # bytes
_FORMAT = {"bits": int, "group_size": int, "mode": str}


@dataclass(frozen=True)
class RecipeFile:
    """What a recipe file says.

    Attributes:
        base: format of modules that no pattern names; None: the file does not say.
        overrides: (pattern, bits or format, or None for unquantized), in the file's order.
        runtime_precision: pattern → name of a floating-point type.
    """

    base: Scheme | None = None
    overrides: tuple[tuple[str, int | Scheme | None], ...] = ()
    runtime_precision: Mapping[str, str] = field(default_factory=dict)


def read_recipe(path: Path) -> RecipeFile:
    """Read a recipe file.

    Raises:
        OptionError: there is no such file, it is no TOML, or an entry has another form; the
            message names it.
    """
    try:
        if path.exists() and not path.is_file():
            raise OptionError(f"--recipe {path}: no regular file; expected a short TOML file")
        if path.stat().st_size > _LARGEST:
            raise OptionError(f"--recipe {path}: larger than 1 MB; expected a short TOML file")
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(
            f"--recipe {path}: cannot be read: {error.strerror or error}; give a .toml file or "
            f"one of mlx-lm's recipes: {', '.join(RECIPES)}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise OptionError(f"--recipe {path}: no valid TOML: {error}") from None
    unknown = sorted(set(raw) - {"base", "modules", "runtime_precision"})
    if unknown:
        raise OptionError(
            f"--recipe {path}: unknown table {unknown[0]!r}; expected [base], [modules] or "
            "[runtime_precision]"
        )
    for name, table in raw.items():
        if not isinstance(table, dict):
            raise OptionError(f"--recipe {path}: {name} must be a table: [{name}]")
    base = raw.get("base")
    return RecipeFile(
        base=None if base is None else _scheme(path, "base", base),
        overrides=tuple(
            (pattern, _override(path, pattern, value))
            for pattern, value in raw.get("modules", {}).items()
        ),
        runtime_precision={
            pattern: _text(path, pattern, value)
            for pattern, value in raw.get("runtime_precision", {}).items()
        },
    )


def _override(path: Path, pattern: str, value: Any) -> int | Scheme | None:
    if value == "keep":
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return _scheme(path, pattern, {"bits": value}).bits
    if isinstance(value, dict):
        found = _scheme(path, pattern, value)
        return found.bits if set(value) == {"bits"} else found
    raise _wrong(path, pattern, value, "a number of bits, 'keep', or a table of bits, group_size "
                 "and mode")  # fmt: skip


def _scheme(path: Path, where: str, table: Mapping[str, Any]) -> Scheme:
    for key, value in table.items():
        if key not in _FORMAT:
            raise OptionError(
                f"--recipe {path}: {where!r} has the unknown key {key!r}; expected "
                f"{', '.join(_FORMAT)}"
            )
        if type(value) is not _FORMAT[key]:
            expected = "a whole number" if _FORMAT[key] is int else "a text"
            raise _wrong(path, f"{where}.{key}", value, expected)
    try:
        return Scheme.resolve(
            table.get("bits"), table.get("group_size"), table.get("mode", "affine")
        )
    except OptionError as error:
        raise OptionError(f"--recipe {path}: {where!r}: {error}") from None


def _text(path: Path, pattern: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(path, pattern, value, "the name of a type")
    return value


def _wrong(path: Path, where: str, value: Any, expected: str) -> OptionError:
    return OptionError(f"--recipe {path}: {where!r} is {value!r}; expected {expected}")
