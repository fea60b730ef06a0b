"""State of modules that torch.export loses: attributes that a call leaves behind."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["lost_state", "reads_state"]


def lost_state(module: torch.nn.Module, caught: Iterable[warnings.WarningMessage]) -> list[str]:
    """Attributes with state that export loses, which torch only warns of.

    Other warnings are given on.
    """
    lost: list[str] = []
    for warning in caught:
        text = str(warning.message)
        if "assigned during export" not in text:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
            continue
        found = dict.fromkeys(re.findall(r"self\.([\w.]*\w)", text))
        lost += [name for name in found if not _is_registered(module, name)]
    return lost


def reads_state(
    module: torch.nn.Module,
    method: str,
    names: Sequence[str],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> bool:
    """Whether attributes that a call leaves behind change what the next one computes.

    Without data in the weights nobody knows.
    """
    import torch
    from torch.utils import _pytree as pytree

    leaves, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
    tensors = [*module.parameters(), *(v for v in leaves if isinstance(v, torch.Tensor))]
    if any(t.device.type == "meta" for t in tensors):
        return True
    owners = [(module.get_submodule(n.rpartition(".")[0]), n.rpartition(".")[2]) for n in names]
    before = [(owner, name, getattr(owner, name)) for owner, name in owners]
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]

    def outputs(step: float) -> list[Any]:
        for buffer, value in buffers:
            buffer.copy_(value)
        given = [v.clone() if isinstance(v, torch.Tensor) else v for v in leaves]
        given = [
            v + step if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in given
        ]
        torch.manual_seed(0)
        positional, named = pytree.tree_unflatten(given, spec)
        return pytree.tree_leaves(getattr(module, method)(*positional, **named))

    try:
        with torch.random.fork_rng(), torch.no_grad():
            first, _, again = (outputs(step) for step in (0.0, 0.5, 0.0))
    except Exception:  # whatever the user's own code raises
        return True
    finally:
        for buffer, value in buffers:
            with torch.no_grad():
                buffer.copy_(value)
        for owner, name, value in before:
            setattr(owner, name, value)
    pairs = zip(first, again, strict=True)
    return not all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) if isinstance(a, torch.Tensor) else a == b
        for a, b in pairs
    )


def _is_registered(module: torch.nn.Module, name: str) -> bool:
    """Whether an attribute only lists parameters and buffers, as those of `nn.LSTM` do, which
    export replaces while it runs.
    """
    from torch.utils import _pytree as pytree

    owner, _, attribute = name.rpartition(".")
    known = {id(t) for t in (*module.parameters(), *module.buffers())}
    leaves = pytree.tree_leaves(getattr(module.get_submodule(owner), attribute))
    return all(id(leaf) in known for leaf in leaves)
