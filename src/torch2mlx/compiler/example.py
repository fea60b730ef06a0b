"""What a user says of a module: the arguments it is traced with, and which extents may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.compiler.dimensions import parse_dynamic
from torch2mlx.compiler.entry_points import (
    Arguments,
    EntryPoint,
    as_arguments,
    check_methods,
    read_arguments,
)
from torch2mlx.errors import OptionError

if TYPE_CHECKING:
    import torch

__all__ = ["Example", "forward_arguments", "read_entry_points", "require_example"]


@dataclass(frozen=True)
class Example:
    """What a module is called with while it is exported, and which extents may change.

    Attributes:
        inputs: positional arguments of `forward`.
        kwargs: its keyword arguments.
        dynamic_shapes: as for `torch.export.export`.
        file: a file with the arguments instead (see `read_arguments`).
        dynamic: "argument:axis=name" texts instead of `dynamic_shapes`.
        entry_points: method → its arguments (a tuple, a dict of keyword arguments, or a tensor)
            or "method=file" texts, in place of an example of `forward`; `dynamic_shapes` is then
            a dict by method, and `dynamic` has "method/argument:axis=name" texts.
    """

    inputs: Sequence[Any] | None = None
    kwargs: Mapping[str, Any] | None = None
    dynamic_shapes: Any = None
    file: str | Path | None = None
    dynamic: Sequence[str] = ()
    entry_points: Mapping[str, Any] | Sequence[str] | None = None

    @property
    def given(self) -> bool:
        """Anything was said at all."""
        return self != Example()


def require_example(name: str, example: Example) -> None:
    """Raise OptionError where no arguments were given to what is called `name`."""
    given = (example.inputs, example.kwargs, example.file, example.entry_points)
    if all(value is None for value in given):
        raise OptionError(
            f"{name}: an example is needed to follow the computation: --example inputs.pt on the "
            "command line, example_inputs=(x,) in Python"
        )


def read_entry_points(module: torch.nn.Module, example: Example) -> list[EntryPoint]:
    """The methods to compile, each with its arguments and dynamic extents.

    Raises:
        OptionError: no such method, a file or value that is no example, or a text that does not
            fit the method.
    """
    named = _arguments(example)
    check_methods(module, list(named))
    texts: dict[str, list[str]] = {}
    for text in example.dynamic:
        method, _, rest = text.rpartition("/")
        method = method or "forward"
        if method not in named:
            raise OptionError(
                f"--dynamic {text}: no entry point {method!r}; write method/argument:axis=name "
                f"with one of {', '.join(named)}"
            )
        texts.setdefault(method, []).append(rest)
    shapes = example.dynamic_shapes
    if example.entry_points is not None:
        unknown = set(shapes or {}) - set(named)
        if unknown:
            raise OptionError(
                f"dynamic_shapes: with entry points a dict by method; {', '.join(sorted(unknown))} "
                "is none of them"
            )
    else:
        shapes = {"forward": shapes}
    points = []
    for method, (args, kwargs) in named.items():
        dynamic = (shapes or {}).get(method)
        if method in texts:
            dynamic = parse_dynamic(texts[method], getattr(module, method), args, kwargs)
        points.append(EntryPoint(method, args, kwargs, dynamic))
    return points


def _arguments(example: Example) -> dict[str, Arguments]:
    """Method → positional and keyword arguments."""
    given = example.entry_points
    if given is None:
        return {"forward": forward_arguments(example)}
    if example.file is not None or example.inputs is not None or example.kwargs is not None:
        raise OptionError(
            "an example of forward and entry points: name forward as one of the entry points"
        )
    if not isinstance(given, Mapping):
        files: dict[str, str] = {}
        for text in given:
            method, equals, file = text.partition("=")
            if not equals or not method.isidentifier() or not file:
                raise OptionError(f"--entry {text}: write method=file, as in encode=inputs.pt")
            if method in files:
                raise OptionError(f"--entry {text}: {method} is given twice")
            files[method] = file
        return {m: read_arguments(file, f"--entry {m}=") for m, file in files.items()}
    if not given:
        raise OptionError("entry_points is empty; name a method and its arguments")
    return {method: as_arguments(value, f"entry point {method}") for method, value in given.items()}


def forward_arguments(example: Example) -> Arguments:
    """Arguments of `forward`, from values or a file.

    Raises:
        OptionError: both are given, or what is given is no example.
    """
    if example.file is None:
        inputs = () if example.inputs is None else example.inputs
        if not isinstance(inputs, tuple | list):
            raise OptionError(f"example_inputs is a {type(inputs).__name__}; give a tuple: (x,)")
        return tuple(inputs), dict(example.kwargs or {})
    if example.inputs is not None or example.kwargs is not None:
        raise OptionError("the example is given twice: as a file and as values")
    return read_arguments(example.file, "--example ")
