"""Calls of the generated model with what the original takes."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.compiler.codegen.signature import Argument, plain
from torch2mlx.compiler.codegen.tree import method_name
from torch2mlx.dtypes import dtype_from_torch, to_mx

if TYPE_CHECKING:
    import torch

__all__ = ["call_model", "flat_outputs", "given_arguments", "import_model", "mlx_array"]


def mlx_array(tensor: torch.Tensor) -> Any:
    """The MLX array of a torch tensor, values unchanged."""
    import torch

    tensor = tensor.detach().cpu().contiguous()
    dtype = dtype_from_torch(tensor.dtype)
    if tensor.dtype == torch.bfloat16:
        return to_mx(tensor.view(torch.uint16).numpy(), dtype)
    return to_mx(tensor.numpy(), dtype)


def import_model(folder: Path) -> Any:
    """The module `model` of a generated folder; nothing stays in `sys.modules`."""
    before = sys.modules.get("model")
    path, no_bytecode = list(sys.path), sys.dont_write_bytecode
    try:
        sys.dont_write_bytecode = True
        spec = importlib.util.spec_from_file_location("model", folder / "model.py")
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        sys.modules["model"] = loaded
        spec.loader.exec_module(loaded)
        return loaded
    finally:
        sys.path[:], sys.dont_write_bytecode = path, no_bytecode
        if before is None:
            sys.modules.pop("model", None)
        else:
            sys.modules["model"] = before


def call_model(
    model: Any,
    method: str,
    arguments: Sequence[Argument],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> list[Any]:
    """Outputs of the generated model, flat.

    Args:
        model: from `load` of the generated file.
        method: of the original.
        arguments: of the generated method.
        args: positional arguments of the original's method.
        kwargs: its keyword arguments.
    """
    given = given_arguments(arguments, args, kwargs)
    return flat_outputs(getattr(model, method_name(method))(**given))


def given_arguments(
    arguments: Sequence[Argument], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """What a generated method is called with, by name; the arguments are those of `call_model`."""
    import torch

    def leaf(value: Any) -> Any:
        return mlx_array(value) if isinstance(value, torch.Tensor) else value

    return {
        a.name: plain(kwargs[a.position] if isinstance(a.position, str) else args[a.position], leaf)
        for a in arguments
    }


def flat_outputs(value: Any) -> list[Any]:
    """Arrays and numbers of a nested result, dicts in the order of torch's pytree."""
    if isinstance(value, Mapping):
        return [leaf for key in value for leaf in flat_outputs(value[key])]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in flat_outputs(item)]
    return [] if value is None else [value]
