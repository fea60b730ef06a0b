"""Damage to bytes and to JSON, the same for the same random numbers."""

from __future__ import annotations

import json
import random
import shutil
import struct
from pathlib import Path
from typing import Any

__all__ = ["NUMBERS", "copied", "damage", "damage_file", "damage_json", "rewrite_json"]

NUMBERS = (
    *(0, 1, 2**7, 2**8, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32),
    *(2**62, 2**63, 2**64 - 1),
)
_TOKENS = (
    *(b"\x00", b"\xff" * 8, b"[" * 500, b'{"a":' * 400, b"-1", b"1e999", b"null"),
    b"\xed\xa0\x80",
)


def damage(rng: random.Random, data: bytes, upto: int | None = None) -> bytes:
    """Change a few bytes, mostly near the start, where headers are."""
    text = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        reach = min(len(text), upto or len(text))
        at = rng.randrange(reach + 1)
        kind = rng.randrange(7)
        if kind == 0 and text:
            text[min(at, len(text) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            text[at : at + 1] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 2:
            del text[at : at + rng.randrange(1, 64)]
        elif kind == 3:
            piece = text[at : at + rng.randrange(1, 64)]
            text[at:at] = piece
        elif kind == 4:
            code = rng.choice(("<I", "<Q"))
            number = rng.choice(NUMBERS) & (2 ** (8 * struct.calcsize(code)) - 1)
            text[at : at + struct.calcsize(code)] = struct.pack(code, number)
        elif kind == 5:
            text[at:at] = rng.choice(_TOKENS)
        else:
            del text[rng.randrange(len(text) + 1) :]
    return bytes(text)


def damage_file(rng: random.Random, path: Path, upto: int | None = None) -> None:
    """The same in a file."""
    path.write_bytes(damage(rng, path.read_bytes(), upto))


_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.0, -0.5, 1e308,
    float("inf"), float("nan"), "", "x", "../../../etc/passwd", "/etc/passwd", "\x00", "\x1b[2J",
    "\ud800", "ключ", "x" * 5000, [], [[]], {}, {"": {}}, [1, 2, 3], ["a"], {"a": 1}, [None] * 50,
    "__import__('os').system('true')", "{{ 7 * 7 }}", "model.safetensors", "float16", "int128",
)  # fmt: skip


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def damage_json(rng: random.Random, value: Any) -> Any:
    """Replace, remove, add or rename something at a random place of a JSON tree."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        result = dict(value)
        kind = rng.randrange(6)
        if kind <= 2:
            result[key] = damage_json(rng, value[key])
        elif kind == 3:
            del result[key]
        elif kind == 4:
            result[str(rng.choice(_VALUES))[:50]] = rng.choice(_VALUES)
        else:
            result[key] = value[rng.choice(list(value))]
        return result
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], damage_json(rng, value[at]), *value[at + rng.randrange(2) :]]
    if isinstance(value, int) and rng.random() < 0.3:
        return rng.choice((value + 1, value - 1, -value, value * 1000, value * 2**40, str(value)))
    return _nested(rng.choice((5, 100, 3000))) if rng.random() < 0.03 else rng.choice(_VALUES)


def rewrite_json(rng: random.Random, path: Path) -> None:
    """The same in a JSON file."""
    try:
        value = json.loads(path.read_text())
        for _ in range(rng.choice((1, 1, 2, 4))):
            value = damage_json(rng, value)
        text = json.dumps(value)
    except (RecursionError, ValueError):
        text = "[" * 5000
    path.write_text(text, encoding="utf-8")


def copied(seed: Path, folder: Path) -> Path:
    """A copy of a folder, with its times."""
    shutil.copytree(seed, folder)
    return folder
