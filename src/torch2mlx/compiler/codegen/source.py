"""What the original source calls things: names of variables and parameters."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

__all__ = ["is_return", "parameters", "statement", "targets"]


@cache
def _tree(file: str) -> ast.Module | None:
    try:
        return ast.parse(Path(file).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None  # an interactive session or generated code; names are then our own


@cache
def _smallest(file: str, line: int) -> ast.stmt | None:
    tree = _tree(file)
    if tree is None:
        return None
    covering = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.stmt) and n.lineno <= line <= (n.end_lineno or n.lineno)
    ]
    return min(covering, key=lambda n: (n.end_lineno or n.lineno) - n.lineno, default=None)


def statement(file: str, line: int) -> tuple[str, int, int]:
    """File, first line and column of the statement at a line; the line itself if unknown."""
    found = _smallest(file, line)
    return (file, found.lineno, found.col_offset) if found is not None else (file, line, 0)


def targets(file: str, line: int) -> list[str]:
    """Names that the statement assigns, without "_"."""
    found = _smallest(file, line)
    if isinstance(found, ast.Assign):
        nodes: list[ast.expr] = [found.targets[-1]]
    elif isinstance(found, ast.AugAssign | ast.AnnAssign):
        nodes = [found.target]
    else:
        return []
    if isinstance(nodes[0], ast.Tuple | ast.List):
        nodes = list(nodes[0].elts)
    names = [n.id for n in nodes if isinstance(n, ast.Name) and n.id.strip("_")]
    return names if all(isinstance(n, ast.Name) for n in nodes) else []


def is_return(file: str, line: int) -> bool:
    """Whether the statement returns."""
    return isinstance(_smallest(file, line), ast.Return)


@cache
def parameters(file: str, line: int) -> tuple[str, ...]:
    """Parameter names of the method around a line, without `self`."""
    tree = _tree(file)
    if tree is None:
        return ()
    covering = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.FunctionDef) and n.lineno <= line <= (n.end_lineno or n.lineno)
    ]
    if not covering:
        return ()
    function = min(covering, key=lambda n: (n.end_lineno or n.lineno) - n.lineno)
    if function.name != "forward":
        return ()
    given = function.args
    return tuple(a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs))[1:]
