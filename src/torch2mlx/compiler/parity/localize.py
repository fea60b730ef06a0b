"""Which module is the first to differ, where the outputs do."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch2mlx.compiler.parity.distance import in_torch_order, relative_error
from torch2mlx.compiler.parity.running import flat_outputs

if TYPE_CHECKING:
    import torch

__all__ = ["first_difference"]


def first_difference(
    module: torch.nn.Module,
    model: Any,
    paths: Mapping[str, str],
    limit: float,
    run_torch: Callable[[], Any],
    run_mlx: Callable[[], Any],
) -> str:
    """The innermost module that returns something else first, as "path (class, error)"; "" if
    the difference arises outside of modules that both have.

    Args:
        module: the original.
        model: the generated one, in the same state.
        paths: of the original → of the generated model, for generated classes.
        limit: relative L2 error that counts as equal.
        run_torch: calls the original.
        run_mlx: calls the generated model on the same inputs.
    """
    import torch

    theirs = _torch_calls(module, run_torch)
    ours = _mlx_calls(model, run_mlx)
    for path, leaves in theirs:
        runs = ours.get(paths.get(path, path))
        if not path or not runs:
            continue
        arrays = runs.pop(0)
        tensors = [t for t in leaves if isinstance(t, torch.Tensor)]
        for array in arrays:
            alike = [t for t in tensors if t.numel() == getattr(array, "size", -1)]
            errors = [
                relative_error(t, ordered, rounded=True)
                for t in alike
                for ordered in in_torch_order(t, array)
            ]
            if errors and not min(errors) <= limit:
                name = type(module.get_submodule(path)).__name__
                return f"{path} ({name}, error {min(errors):.1e})"
    return ""


def _torch_calls(module: torch.nn.Module, run: Callable[[], Any]) -> list[tuple[str, list[Any]]]:
    """Path and outputs of every call of a module, in the order in which they end."""
    from torch.utils import _pytree as pytree

    calls: list[tuple[str, list[Any]]] = []
    hooks = [
        inner.register_forward_hook(
            lambda m, i, o, path=path: calls.append((path, pytree.tree_leaves(o)))
        )
        for path, inner in module.named_modules()
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _mlx_calls(model: Any, run: Callable[[], Any]) -> dict[str, list[list[Any]]]:
    """Path → the outputs of each call of the module."""
    calls: dict[str, list[list[Any]]] = {}
    names = {id(module): name for name, module in model.named_modules()}
    classes = {type(module) for module in model.modules()}
    originals = {
        (kind, name): function
        for kind in classes
        for name, function in vars(kind).items()
        if re.fullmatch(r"__call__|call_\d+", name)
    }

    def recording(original: Any) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            calls.setdefault(names.get(id(self), "?"), []).append(flat_outputs(result))
            return result

        return call

    try:
        for (kind, name), original in originals.items():
            setattr(kind, name, recording(original))
        run()
    finally:
        for (kind, name), original in originals.items():
            setattr(kind, name, original)
    return calls
