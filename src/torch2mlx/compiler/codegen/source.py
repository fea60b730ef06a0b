"""What the original source calls things: names of variables and parameters."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

__all__ = ["aliases", "call_arguments", "is_return", "parameters", "statement", "targets"]


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
def _function(file: str, line: int) -> ast.FunctionDef | None:
    tree = _tree(file)
    if tree is None:
        return None
    covering = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.FunctionDef) and n.lineno <= line <= (n.end_lineno or n.lineno)
    ]
    return min(covering, key=lambda n: (n.end_lineno or n.lineno) - n.lineno, default=None)


@cache
def parameters(file: str, line: int) -> tuple[str, ...]:
    """Parameter names of the `forward` around a line, without `self`."""
    found = _function(file, line)
    if found is None or found.name != "forward":
        return ()
    given = found.args
    return tuple(a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs))[1:]


@cache
def aliases(file: str, line: int) -> dict[str, str]:
    """Variables of the function around a line that begin as another one: `x = inputs`."""
    found = _function(file, line)
    names: dict[str, str] = {}
    for node in ast.walk(found) if found is not None else ():
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    names.setdefault(target.id, node.value.id)
    return names


@cache
def call_arguments(file: str, line: int, attribute: str) -> tuple[dict[int, str], dict[str, str]]:
    """What a statement gives to the module that it calls.

    Args:
        file: of the statement.
        line: of the statement.
        attribute: that holds the module; a loop gives it another name.

    Returns:
        Position → variable and keyword → variable, of arguments that are a variable or a part
        of one; empty if the call is not found.
    """
    found = _smallest(file, line)
    calls = [n for n in ast.walk(found) if isinstance(n, ast.Call)] if found is not None else []
    named = [c for c in calls if isinstance(c.func, ast.Attribute) and c.func.attr == attribute]
    looped = [c for c in calls if isinstance(c.func, ast.Name)]
    chosen = named or looped
    if len(chosen) != 1:
        return {}, {}
    by_position = {i: name for i, a in enumerate(chosen[0].args) if (name := _variable(a))}
    by_keyword = {k.arg: name for k in chosen[0].keywords if k.arg and (name := _variable(k.value))}
    return by_position, by_keyword


def _variable(node: ast.expr) -> str:
    while isinstance(node, ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""
