"""A `.pt2` file: a program that `torch.export.save` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch2mlx.errors import SourceError, UnsupportedError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["is_exported_file", "load_exported"]


def is_exported_file(path: Path) -> bool:
    """Whether a path has its name."""
    return path.suffix == ".pt2"


def load_exported(file: Path, trust_remote_code: bool) -> ExportedProgram:
    """The program in a `.pt2` file.

    `torch.export.load` unpickles what is not plain, and evaluates its expressions of sizes with
    SymPy, which is `eval`: whoever made the file can run code here.

    Raises:
        UnsupportedError: without consent to that.
        SourceError: there is none that this version of torch can read, or it has no example.
    """
    import torch

    if not file.is_file():
        raise SourceError(f"{file}: no such file")
    if not trust_remote_code:
        raise UnsupportedError(
            f"{file}: an exported program can bring code, which would run here; if you trust it, "
            "add --trust-remote-code, or convert the module itself"
        )
    try:
        program = torch.export.load(file)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SourceError(
            f"{file}: torch {torch.__version__} cannot read it as an exported program ({reason}); "
            "write it again with torch.export.save under this version of torch, or convert the "
            "module itself"
        ) from error
    if program.example_inputs is None:
        raise SourceError(
            f"{file}: it was saved without its example inputs, so nothing can be compared; export "
            "and save it again, or convert the module itself"
        )
    return program
