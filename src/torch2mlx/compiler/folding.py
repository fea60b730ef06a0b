"""Weights that a module keeps as direction and length, as the one tensor that they stand for.

`torch.nn.utils.weight_norm`, old and new, computes a weight at every call; at inference it is
always the same one.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["without_weight_norm"]


def without_weight_norm(module: torch.nn.Module) -> torch.nn.Module | None:
    """A copy whose normalized weights are plain parameters; None where there are none.

    Args:
        module: with data; stays as it is.  Weights of other parametrizations are left alone.
    """
    if not any(_parametrized(m) or _hooks(m) for m in module.modules()):
        return None
    from torch.nn import Parameter
    from torch.nn.utils import remove_weight_norm

    # Hooks leave what they computed in a plain attribute, which refuses to be copied.
    computed = [vars(m)[hook.name] for m in module.modules() for hook in _hooks(m)]
    found = deepcopy(module, {id(tensor): tensor.detach().clone() for tensor in computed})
    for inner in list(found.modules()):
        names = _parametrized(inner)
        values = {n: getattr(inner, n).detach().clone() for n in names}
        if names:
            # torch's own removal changes the class, which the original module has too.
            inner.__class__ = type(inner).__bases__[0]
            del inner.parametrizations
        for name, value in values.items():
            inner.register_parameter(name, Parameter(value, requires_grad=False))
        for hook in _hooks(inner):
            remove_weight_norm(inner, hook.name)
    return found


def _parametrized(module: torch.nn.Module) -> list[str]:
    """Names of a module's parametrized weights, if weight norms are all that they have."""
    from torch.nn.utils import parametrizations

    lists: Any = getattr(module, "parametrizations", {})
    kind: Any = getattr(parametrizations, "_WeightNorm", ())
    plain = all(len(made) == 1 and isinstance(made[0], kind) for made in lists.values())
    return list(lists) if plain else []


def _hooks(module: torch.nn.Module) -> list[Any]:
    """Weight norms of the old kind: hooks before `forward`."""
    from torch.nn.utils.weight_norm import WeightNorm

    return [h for h in module._forward_pre_hooks.values() if isinstance(h, WeightNorm)]
