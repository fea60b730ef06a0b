"""Floating-point types by module: some compute in float32 where the rest is narrower."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import mlx.core as mx

__all__ = ["set_precision"]


def _matching(path: str, precision: dict[str, str]) -> str | None:
    """The type of the last glob that matches a module's path or a dotted end of it."""
    parts = path.split(".")
    ends = [".".join(parts[i:]) for i in range(len(parts))]
    found = None
    for pattern, name in precision.items():
        if any(fnmatchcase(end, pattern) for end in ends):
            found = name
    return found


def _cast(value: Any, source: Any, target: Any) -> Any:
    """Arrays of type `source` as `target`; vectors, such as rotary frequencies, stay."""
    if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
        return type(value)(_cast(part, source, target) for part in value)
    if isinstance(value, mx.array) and value.ndim > 1 and value.dtype == source:
        return value.astype(target)
    return value


def _casting(kind: Any, dtype: Any) -> Any:
    """A class whose calls compute in `dtype`; results come back in the type of the input."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        arrays = [v for v in (*args, *kwargs.values()) if isinstance(v, mx.array)]
        outer = next((a.dtype for a in arrays if mx.issubdtype(a.dtype, mx.floating)), None)
        if outer is None:
            return kind.__call__(self, *args, **kwargs)
        args = tuple(_cast(v, outer, dtype) for v in args)
        kwargs = {name: _cast(v, outer, dtype) for name, v in kwargs.items()}
        return _cast(kind.__call__(self, *args, **kwargs), dtype, outer)

    return type(kind.__name__, (kind,), {"__call__": call})


def set_precision(model: Any, precision: dict[str, str]) -> None:
    """Let modules compute in types of their own, with their parameters stored so.

    `precision` maps globs of module paths to "float32", "float16" or "bfloat16"; the last match
    wins, and a module that none matches computes as the one around it.
    """
    modules = dict(model.named_modules())
    chosen: dict[str, str | None] = {}
    for path in sorted(modules):
        parts = path.split(".")
        around = [".".join(parts[:i]) for i in reversed(range(len(parts)))]
        outer = next((chosen[p] for p in around if p in chosen), None) if path else None
        chosen[path] = _matching(path, precision) or outer
        name = chosen[path]
        if name is None:
            continue
        module, dtype = modules[path], getattr(mx, name)
        packed = "scales" in module
        for key, value in module.items():
            fixed = key in module._no_grad and not packed
            if isinstance(value, mx.array) and mx.issubdtype(value.dtype, mx.floating):
                module[key] = value if fixed else value.astype(dtype)
        if name != outer and path:
            module.__class__ = _casting(type(module), dtype)
