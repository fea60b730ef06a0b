"""Which model types mlx-lm has a port for, told without importing it.

Importing mlx-lm loads transformers and torch, which takes seconds; a question about names should
not.  Its table of aliases is a literal in its source, so it can be read from there.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = [
    "ENDS_PROGRAM",
    "available_ports",
    "port_name",
    "port_settings",
    "runs_sharded",
    "sharded_ports",
    "similar_ports",
]

ENDS_PROGRAM = (
    "mlx-lm's port of this model type ends the program where a package of its own is not installed "
    "(olmo: ai2-olmo); install that package"
)
"""What a SystemExit from mlx-lm means."""

# Modules of mlx_lm.models that define no model.
_SHARED = frozenset(
    "activations base bitlinear_layers cache gated_delta mla pipeline rope_utils ssm "
    "switch_layers".split()
)


@cache
def _folder() -> Path:
    spec = find_spec("mlx_lm")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("mlx_lm")
    return Path(next(iter(spec.submodule_search_locations)))


@cache
def _aliases() -> dict[str, str]:
    tree = ast.parse((_folder() / "utils.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == "MODEL_REMAPPING" for t in node.targets
        ):
            return dict(ast.literal_eval(node.value))
    return {}


@cache
def available_ports() -> tuple[str, ...]:
    """Model types of mlx-lm's ports, aliases included, sorted."""
    modules = {path.stem for path in (_folder() / "models").glob("*.py")}
    names = {name for name in modules - _SHARED if not name.startswith("_")}
    return tuple(sorted(names | {a for a, target in _aliases().items() if target in names}))


def port_name(config: Mapping[str, Any]) -> str | None:
    """Name of the module of `mlx_lm.models` that serves a config's model type, or None."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in available_ports():
        return None
    return _aliases().get(model_type, model_type)


@cache
def port_settings(port: str) -> frozenset[str]:
    """Names that a port's arguments take, those of ports that it builds on included.

    Args:
        port: name of a module of `mlx_lm.models`, as `port_name` gives it.
    """
    return frozenset(_settings(port, set()))


def _settings(module: str, seen: set[str]) -> set[str]:
    path = _folder() / "models" / f"{module}.py"
    if module in seen or module in _SHARED or not path.exists():
        return set()
    seen.add(module)
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            fields = (n.target for n in node.body if isinstance(n, ast.AnnAssign))
            names.update(field.id for field in fields if isinstance(field, ast.Name))
        elif isinstance(node, ast.ImportFrom) and node.level == 1:
            others = [node.module] if node.module else [alias.name for alias in node.names]
            for other in others:
                names |= _settings(other, seen)
    return names


@cache
def runs_sharded(port: str) -> bool:
    """Whether a port's `Model` has the method `shard`, its own or inherited.

    Through it mlx-lm splits every layer over several machines that `mlx.launch` has started.

    Args:
        port: name of a module of `mlx_lm.models`, as `port_name` gives it.
    """
    return _has_method(port, "Model", "shard")


def _has_method(module: str, name: str, method: str) -> bool:
    path = _folder() / "models" / f"{module}.py"
    if not path.exists():
        return False
    classes: dict[str, ast.ClassDef] = {}
    imported: dict[str, tuple[str, str]] = {}  # name here → module and name there
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            classes[node.name] = node
        elif isinstance(node, ast.ImportFrom) and node.level == 1:
            for alias in node.names:
                origin = (node.module, alias.name) if node.module else (alias.name, "")
                imported[alias.asname or alias.name] = origin
    if name not in classes:
        return name in imported and _has_method(*imported[name], method)
    if any(isinstance(n, ast.FunctionDef) and n.name == method for n in classes[name].body):
        return True
    for base in classes[name].bases:
        if isinstance(base, ast.Name) and _has_method(module, base.id, method):
            return True
        if isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name):
            other, _ = imported.get(base.value.id, ("", ""))
            if _has_method(other, base.attr, method):
                return True
    return False


def sharded_ports() -> tuple[str, ...]:
    """Model types, aliases included, whose ports run on several machines, sorted."""
    names = available_ports()
    return tuple(name for name in names if runs_sharded(_aliases().get(name, name)))


def similar_ports(model_type: str) -> list[str]:
    """Up to three model types with a port and a similar name."""
    return get_close_matches(model_type, available_ports(), n=3)
