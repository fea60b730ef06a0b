"""A module that a function of the user's builds, named as "package.module:factory"."""

from __future__ import annotations

import importlib
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch2mlx.compiler.meta import parameters_on_meta
from torch2mlx.errors import SourceError

__all__ = ["is_factory", "load_factory"]

_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_factory(name: str) -> bool:
    """Whether a text has the form of such a name."""
    return _FACTORY.fullmatch(name) is not None


def load_factory(name: str, on_meta: bool = False) -> Any:
    """The module that "package.module:factory" makes, in inference mode.

    The working directory is searched first, as `python -m` does.

    Args:
        name: of the factory.
        on_meta: keep its parameters on the meta device, where they take no memory; buffers are
            made as ever.

    Raises:
        SourceError: it cannot be imported, found or called, or makes something else.
    """
    import torch

    module_name, _, attribute = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        importlib.invalidate_caches()
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise SourceError(
            f"{name}: {module_name} cannot be imported ({type(error).__name__}: {error}); run in "
            "the folder that holds it, or install it"
        ) from error
    finally:
        sys.path.remove(str(Path.cwd()))
    try:
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        names = [n for n in vars(importlib.import_module(module_name)) if n[0] != "_"]
        raise SourceError(
            f"{name}: {error}; it defines {', '.join(names[:12]) or 'nothing'}"
        ) from error
    if not isinstance(found, torch.nn.Module):
        if not callable(found):
            raise SourceError(f"{name}: a {type(found).__name__}, not a function or an nn.Module")
        try:
            with parameters_on_meta() if on_meta else nullcontext():
                found = found()
        except Exception as error:
            meta = ", called with its parameters on the meta device," if on_meta else ""
            raise SourceError(
                f"{name}(){meta} fails: {type(error).__name__}: {error}; a factory takes no "
                "arguments and returns the module with its weights"
            ) from error
    if not isinstance(found, torch.nn.Module):
        raise SourceError(f"{name}() returns a {type(found).__name__}, not an nn.Module")
    return found.eval()
