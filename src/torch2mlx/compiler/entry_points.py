"""Methods of a module that are compiled together, each with the example that it is traced on."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.errors import OptionError

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from torch2mlx.compiler.graph import Graph
    from torch2mlx.compiler.program import Program
    from torch2mlx.compiler.specialization import Question

__all__ = [
    "Arguments",
    "CompiledEntry",
    "EntryPoint",
    "Exported",
    "as_arguments",
    "check_methods",
    "read_arguments",
    "read_more_arguments",
]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""


@dataclass(frozen=True)
class EntryPoint:
    """A method and an example of its arguments.

    Attributes:
        method: of the module; "forward" becomes the generated model's `__call__`.
        args: positional arguments.
        kwargs: keyword arguments.
        dynamic_shapes: as for `torch.export.export`; other extents are fixed.
    """

    method: str = "forward"
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamic_shapes: Any = None

    @property
    def leaves(self) -> list[Any]:
        """The arguments, flat."""
        from torch.utils import _pytree as pytree

        return pytree.tree_leaves((tuple(self.args), dict(self.kwargs)))

    def cast(self, dtype: torch.dtype) -> EntryPoint:
        """The same with floating-point tensors in another dtype."""
        import torch
        from torch.utils import _pytree as pytree

        def other(value: torch.Tensor) -> torch.Tensor:
            return value.to(dtype) if value.is_floating_point() else value

        args, kwargs = pytree.tree_map_only(torch.Tensor, other, (self.args, dict(self.kwargs)))
        return replace(self, args=args, kwargs=kwargs)


@dataclass(frozen=True, eq=False)
class Exported:
    """Torch's program of a method.

    Attributes:
        program: functional.
        questions: about values, that the example answered: the program returns (result, what
            they were about); None: it returns the result.
        buffers: values that the answers followed from, beside the inputs.
    """

    program: ExportedProgram
    questions: tuple[Question, ...] | None = None
    buffers: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class CompiledEntry:
    """Every stage of one method.

    Attributes:
        point: what was compiled.
        original: the same as the user gave it, where it was compiled in another dtype.
        exported: torch's program.
        graph: as data.
        program: lowered.
        buffers: values that checks of inputs need beside them.
    """

    point: EntryPoint
    original: EntryPoint
    exported: ExportedProgram
    graph: Graph
    program: Program
    buffers: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def method(self) -> str:
        return self.point.method

    @property
    def flat(self) -> list[Any]:
        """Leaves of the example."""
        return self._flattened(self.point)[0]

    @property
    def original_flat(self) -> list[Any]:
        """Leaves of the example as the user gave it."""
        return self._flattened(self.original)[0]

    @property
    def spec(self) -> Any:
        """Their pytree: (args, kwargs)."""
        return self._flattened(self.point)[1]

    @staticmethod
    def _flattened(point: EntryPoint) -> tuple[list[Any], Any]:
        from torch.utils import _pytree as pytree

        return pytree.tree_flatten((tuple(point.args), dict(point.kwargs)))


def check_methods(module: torch.nn.Module, methods: Sequence[str]) -> None:
    """Raise OptionError for names that are no methods of a module, all at once."""
    named = [m for m in methods if m != "forward"]
    wrong = [m for m in named if not inspect.ismethod(getattr(module, m, None))]
    if wrong:
        raise OptionError(
            f"{type(module).__name__} has no method {', '.join(wrong)}; an entry point is named "
            "by a method of the module (compile a submodule by itself)"
        )


def read_more_arguments(points: Sequence[EntryPoint], files: Sequence[str]) -> list[EntryPoint]:
    """Further arguments of the only method, each in a file that `read_arguments` reads.

    Raises:
        OptionError: there are several methods, or a file holds no arguments.
    """
    if files and len(points) > 1:
        raise OptionError(
            "--calibration-text: a module with several entry points is calibrated with their "
            "examples alone; leave it out, or give larger examples"
        )
    found = []
    for file in files:
        args, kwargs = read_arguments(file, "--calibration-text ")
        found.append(replace(points[0], args=args, kwargs=kwargs))
    return found


def read_arguments(file: str | Path, option: str) -> Arguments:
    """Positional and keyword arguments in a file.

    It holds what `torch.save` wrote: a tensor, a tuple or list of positional arguments, or a
    dict of keyword arguments; tensors and plain containers only.
    """
    import torch

    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).split("\n", 1)[0][:200] or type(error).__name__
        raise OptionError(
            f"{option}{file}: {reason}; write it with torch.save: a tensor, a tuple of "
            "positional or a dict of keyword arguments, of tensors and plain values only"
        ) from error
    return as_arguments(found, f"{option}{file}")


def as_arguments(found: Any, place: str) -> Arguments:
    """A tensor, a tuple or list, or a dict as positional and keyword arguments.

    Raises:
        OptionError: it is none of them; `place` names it.
    """
    import torch

    if isinstance(found, Mapping) and all(isinstance(key, str) for key in found):
        return (), dict(found)
    if isinstance(found, tuple | list):
        return tuple(found), {}
    if isinstance(found, torch.Tensor):
        return (found,), {}
    raise OptionError(
        f"{place}: a {type(found).__name__}; it must be a tensor, a tuple of "
        "positional or a dict of keyword arguments"
    )
