"""Calibration data: a user's texts, or what every Python installation carries.

The standard library is prose and code that is there without a network and the same for everyone
with the same Python: the language reference in `pydoc_data`, docstrings, the license.
"""

from __future__ import annotations

import ast
import json
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torch2mlx.errors import OptionError, SourceError

__all__ = ["calibration_ids", "installed_texts", "read_texts"]

Array = np.ndarray[Any, Any]

_CHARACTERS = 8  # of text a token at most, for cutting before tokenizing
_USUAL = 4  # characters a token
_LARGEST = 1 << 30  # bytes of one text file
_SHORTEST = 400  # characters of a docstring that counts as prose

# Modules with long explanations, from several fields.
_MODULES = (
    "argparse", "asyncio/events", "bisect", "calendar", "collections/__init__", "configparser",
    "csv", "dataclasses", "datetime", "decimal", "difflib", "doctest", "email/message",
    "fractions", "functools", "heapq", "html/parser", "http/cookiejar", "http/server", "imaplib",
    "inspect", "ipaddress", "json/__init__", "logging/__init__", "mailbox", "optparse", "pathlib",
    "pdb", "pickle", "pickletools", "random", "re/__init__", "shutil", "smtplib",
    "statistics", "string", "subprocess", "tarfile", "textwrap", "threading", "tkinter/__init__",
    "turtle", "typing", "unittest/case", "unittest/mock", "urllib/parse", "urllib/request",
    "uuid", "weakref", "xml/etree/ElementTree", "zipfile/__init__",
)  # fmt: skip


def calibration_ids(tokenizer: Any, texts: Sequence[str], tokens: int, length: int) -> Array:
    """Windows of token ids, evenly spaced over texts; no chance is involved.

    Args:
        tokenizer: transformers'.
        texts: all get the same number of windows, short ones as many as they hold.
        tokens: wanted in all.
        length: of a window.

    Returns:
        int64 [windows, length].

    Raises:
        OptionError: the texts hold less than one window.
    """
    count = max(1, tokens // length)
    windows: list[list[int]] = []
    for text, share in zip(texts, _shares(texts, count, length), strict=True):
        step = max(1, len(text) // share)
        for start in range(0, len(text), step):
            piece = text[start : start + max(step, length * _CHARACTERS)][: length * _CHARACTERS]
            ids = list(tokenizer(piece).input_ids)[:length]
            if len(ids) == length:
                windows.append(ids)
    if not windows:
        joined = list(tokenizer("\n\n".join(texts)).input_ids)
        windows = [joined[i : i + length] for i in range(0, len(joined) - length + 1, length)]
    if not windows:
        raise OptionError(
            f"the calibration text holds less than {length} tokens; give more of it with "
            "--calibration-text, or leave that out for the texts of the Python installation"
        )
    chosen = np.linspace(0, len(windows) - 1, min(count, len(windows))).round().astype(int)
    return np.array([windows[i] for i in dict.fromkeys(chosen.tolist())], dtype=np.int64)


def _shares(texts: Sequence[str], count: int, length: int) -> list[int]:
    """How many of `count` windows each text gives; more than it holds where all are short."""
    room = [max(1, len(text) // (_USUAL * length)) for text in texts]
    if sum(room) <= count:
        return [-(-count * r // sum(room)) for r in room]
    shares = [0] * len(texts)
    left = count
    for done, i in enumerate(sorted(range(len(texts)), key=lambda i: room[i])):
        shares[i] = min(room[i], -(-left // (len(texts) - done)))
        left = max(0, left - shares[i])
    return [max(1, share) for share in shares]


def installed_texts() -> list[str]:
    """Prose and code of the standard library: the language reference, docstrings, modules."""
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    reference = root / "pydoc_data" / "topics.py"
    if reference.is_file():
        found.append("\n\n".join(_strings(reference)))
    prose: list[str] = []
    code: list[str] = []
    for name in _MODULES:
        path = root / f"{name}.py"
        if path.is_file():
            prose += _docstrings(path)
            code.append(path.read_text(encoding="utf-8", errors="replace")[:6000])
    found.append("\n\n".join(prose))
    found.append("\n\n".join(code))
    return [text for text in found if text]


def read_texts(paths: Sequence[str]) -> list[tuple[str, list[Any]]]:
    """The texts and chats of files.

    A .jsonl or .json file holds objects with "text", "prompt" and "completion", or "messages" (a
    chat, a list of {"role", "content"}); any other file is plain text.

    Returns:
        for each file its plain text, and its chats.

    Raises:
        SourceError: a file is missing, no text, or of another form.
    """
    return [_read(Path(path)) for path in paths]


def _read(path: Path) -> tuple[str, list[Any]]:
    try:
        if path.stat().st_size > _LARGEST:
            raise SourceError(f"{path}: larger than 1 GB; give a part of it")
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    if path.suffix not in (".jsonl", ".json"):
        return text, []
    texts, chats = [], []
    for number, entry in _entries(path, text):
        if isinstance(entry, str):
            texts.append(entry)
        elif isinstance(entry, dict) and _is_chat(entry.get("messages")):
            chats.append(entry["messages"])
        elif isinstance(entry, dict) and isinstance(entry.get("text"), str):
            texts.append(entry["text"])
        elif isinstance(entry, dict) and isinstance(entry.get("prompt"), str):
            texts.append(entry["prompt"] + str(entry.get("completion") or ""))
        else:
            raise SourceError(
                f"{path}, entry {number}: expected an object with 'text', 'prompt' or 'messages' "
                "(a list of objects with 'role' and 'content')"
            )
    return "\n\n".join(texts), chats


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def _entries(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    try:
        if path.suffix == ".json":
            whole = json.loads(text)
            yield from enumerate(whole if isinstance(whole, list) else [whole], 1)
            return
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield number, json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: no valid JSON: {error}") from None


def _docstrings(path: Path) -> Iterator[str]:
    """The long docstrings of a module, read and not run."""
    tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= _SHORTEST:
                yield text


def _strings(path: Path) -> Iterator[str]:
    """The long texts among the constants of a module, read and not run."""
    tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
    for node in ast.walk(tree):
        value = node.value if isinstance(node, ast.Constant) else None
        if isinstance(value, str) and len(value) >= _SHORTEST:
            yield value
