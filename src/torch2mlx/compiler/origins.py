"""Where the nodes of an exported program come from: calls of modules, and lines of the original."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch2mlx.compiler.graph import Frame, Origin

__all__ = ["module_path", "origin_of", "place"]


def origin_of(node: Any, method: str, class_name: str) -> Origin:
    """Where a node of torch's program comes from.

    Args:
        node: of an exported program.
        method: that was exported.
        class_name: of the program, for calls around it that belong to no module.
    """
    stack = node.meta.get("nn_module_stack") or {}
    trace = node.meta.get("stack_trace") or ""
    lines = _frame_lines(trace, len(stack), method)
    frames = []
    for (key, (path, kind)), place in zip(stack.items(), lines, strict=True):
        kind_name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
        if kind_name.startswith("torch.export._trace."):  # around a program without modules
            kind_name = class_name
        frames.append(Frame(module_path(path), str(key), kind_name, *place))
    file, line = _user_line(trace)
    return Origin(tuple(frames), file, line)


def place(origin: Origin) -> str:
    """How a message names it."""
    return str(origin) or "forward"


def module_path(path: Any) -> str:
    """A module's path; torch marks further calls of it with "@1"."""
    return ".".join(part.split("@")[0] for part in str(path).split("."))


def _frame_lines(trace: str, count: int, method: str) -> list[tuple[str, int]]:
    """What each module of the stack was doing: a trace has one `forward` for each, and the
    method for the root.
    """
    frames = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', trace)
    first = next((i for i, frame in enumerate(frames) if frame[2] == method), len(frames))
    found = [
        (file, int(line))
        for i, (file, line, function) in enumerate(frames)
        if i == first or (i > first and function == "forward")
    ]
    return found if len(found) == count else [("", 0)] * count


def _user_line(trace: str) -> tuple[str, int]:
    """File and line of the innermost frame outside torch."""
    import torch

    folder = str(Path(torch.__file__).parent)
    frames = re.findall(r'File "([^"]+)", line (\d+)', trace)
    for file, line in reversed(frames):
        if not file.startswith((folder, "<")):
            return file, int(line)
    return "", 0
