"""The part of the compiler's runtime that a generated model uses, for its own file."""

from __future__ import annotations

import ast
import inspect
import sys
from typing import Any

__all__ = ["runtime_source"]

_PACKAGE = "torch2mlx.compiler.runtime"


def runtime_source(functions: dict[str, Any]) -> tuple[list[str], str]:
    """Source of functions, with what they need from their modules and nothing else.

    Args:
        functions: name → function of `torch2mlx.compiler.runtime`.

    Returns:
        Lines of imports of the standard library, and the definitions.
    """
    collector = _Collector()
    for name, function in sorted(functions.items()):
        collector.collect(function.__module__, name)
    imports = [line for line in sorted(collector.imports) if not line.startswith("import mlx")]
    return [i for i in imports if "__future__" not in i], "\n\n\n".join(
        collector.definitions.values()
    )


class _Collector:
    def __init__(self) -> None:
        self.definitions: dict[str, str] = {}
        self.owners: dict[str, str] = {}
        self.imports: set[str] = set()

    def collect(self, module: str, name: str) -> None:
        if self.owners.get(name) == module:
            return
        if name in self.owners:
            raise ValueError(f"{name} is defined in {self.owners[name]} and in {module}")
        source = inspect.getsource(sys.modules[module])
        tree = ast.parse(source)
        found = next((n for n in tree.body if name in _defined(n)), None)
        if found is None:
            raise ValueError(f"{module} does not define {name}")
        self.owners[name] = module
        imported = {alias: n for n in tree.body for alias in _imported(n)}
        known = {d: n for n in tree.body for d in _defined(n)}
        # Definitions come before their users, as module-level values need it.
        for used in dict.fromkeys(n.id for n in ast.walk(found) if isinstance(n, ast.Name)):
            if used in known:
                self.collect(module, used)
            elif used in imported:
                self._import(imported[used], used)
        text = _source(source, found)
        self.definitions[name] = text

    def _import(self, node: ast.stmt, name: str) -> None:
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            alias = next(a for a in node.names if (a.asname or a.name) == name)
            if module.startswith(_PACKAGE):
                __import__(module)
                self.collect(module, alias.name)
                return
            renamed = f" as {alias.asname}" if alias.asname else ""
            self.imports.add(f"from {module} import {alias.name}{renamed}")
        elif isinstance(node, ast.Import):
            alias = next(a for a in node.names if (a.asname or a.name.split(".")[0]) == name)
            renamed = f" as {alias.asname}" if alias.asname else ""
            self.imports.add(f"import {alias.name}{renamed}")


def _source(source: str, node: ast.stmt) -> str:
    lines = source.splitlines()
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(d.lineno for d in decorators)])
    last = node.end_lineno or node.lineno
    text = lines[first - 1 : last]
    # A string after a constant documents it.
    return "\n".join(text)


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [t.id for t in node.targets if isinstance(t, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


def _imported(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [a.asname or a.name.split(".")[0] for a in node.names]
    if isinstance(node, ast.ImportFrom):
        return [a.asname or a.name for a in node.names]
    return []
