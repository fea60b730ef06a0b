"""TorchScript archives: code of an archive, run with consent, as an exported program."""

from __future__ import annotations

import inspect
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.errors import OptionError, SourceError, UnsupportedError
from torch2mlx.messages import first_line

if TYPE_CHECKING:
    import torch

__all__ = ["ADVICE", "is_torchscript", "load_torchscript", "module_of"]

ADVICE = (
    "build the original nn.Module, give it the weights with "
    "load_state_dict(torch.jit.load(file).state_dict()), and convert that"
)


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive with code."""
    try:
        if not path.is_file():  # a device has no end
            return False
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def load_torchscript(file: Path, trust_remote_code: bool) -> torch.jit.ScriptModule:
    """The module of an archive, in inference mode.

    Raises:
        UnsupportedError: without consent to run its code.
        SourceError: torch cannot read it.
    """
    import torch

    if not trust_remote_code:
        raise UnsupportedError(
            f"{file}: a TorchScript archive contains code, which would run here; if you trust it, "
            f"add --trust-remote-code and an example; or {ADVICE}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit itself
            module: torch.jit.ScriptModule = torch.jit.load(file, map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:
        raise SourceError(
            f"{file}: torch {torch.__version__} cannot read it as a TorchScript archive "
            f"({first_line(error)})"
        ) from error
    return module.eval()


def module_of(
    script: torch.jit.ScriptModule, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> torch.nn.Module:
    """A module of ordinary operators that computes what TorchScript does on an example.

    Torch's own converter makes it, which follows few branches.  Names of parameters, buffers
    and arguments are those of the archive.

    Raises:
        OptionError: keyword arguments, which the converter does not take.
        UnsupportedError: the converter cannot follow the code; says why.
    """
    import torch
    from torch._export.converter import TS2EPConverter

    if kwargs:
        raise OptionError(
            f"{script.original_name}: TorchScript takes an example of positional arguments: a tuple"
        )
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = TS2EPConverter(script, tuple(args)).convert()
            module: torch.nn.Module = program.module(check_guards=False)
    except Exception as error:
        raise UnsupportedError(
            f"{script.original_name}: torch cannot turn this TorchScript into an exported program "
            f"({first_line(error)}); {ADVICE}"
        ) from error
    _restore_parameters(module, script)
    schema: Any = script.forward.schema  # type: ignore[attr-defined]
    names = [a.name for a in schema.arguments[1:]]
    return _named(module, script.original_name, names[: len(args)])


def _restore_parameters(module: torch.nn.Module, script: torch.nn.Module) -> None:
    """The converter makes buffers of all weights."""
    import torch

    for name, _ in script.named_parameters(remove_duplicate=False):
        path, _, leaf = name.rpartition(".")
        try:
            owner = module.get_submodule(path)
        except AttributeError:  # it is not used
            continue
        if leaf in owner._buffers:
            value = owner._buffers.pop(leaf)
            assert value is not None
            setattr(owner, leaf, torch.nn.Parameter(value.detach(), requires_grad=False))


def _named(module: torch.nn.Module, name: str, arguments: Sequence[str]) -> torch.nn.Module:
    """The module as one of a class with this name, whose arguments are called so."""
    original: Any = type(module).forward

    def forward(self: Any, *args: Any) -> Any:
        return original(self, *args)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(n, kind) for n in ("self", *arguments)]
    )
    module.__class__ = type(name, (type(module),), {"forward": forward})
    return module
