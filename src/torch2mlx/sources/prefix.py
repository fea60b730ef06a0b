"""A prefix that every name of a checkpoint has, and its model does not know.

Trainers hold the module as an attribute: Lightning writes "model.", others "net.".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from torch2mlx.planning.expressions import Expr
from torch2mlx.sources.base import Checkpoint

__all__ = ["renamed", "without_prefix"]


def without_prefix(
    checkpoint: Checkpoint, fits: Callable[[Mapping[str, Expr]], bool]
) -> Checkpoint:
    """The checkpoint under the names that its model knows.

    Args:
        checkpoint: to be renamed, with a note that tells; as it is where its names fit, or where
            no shared prefix less makes them fit.
        fits: whether tensors have names that the model knows; asked only where all names share
            a prefix.
    """
    prefixes = list(_shared_prefixes(checkpoint.state))
    if not prefixes or fits(checkpoint.state):
        return checkpoint
    for prefix in prefixes:
        names = {name: name.removeprefix(prefix) for name in checkpoint.state}
        if fits({new: checkpoint.state[old] for old, new in names.items()}):
            note = f"{checkpoint.location}: the prefix {prefix!r} was taken off every name"
            return replace(renamed(checkpoint, names), notes=(*checkpoint.notes, note))
    return checkpoint


def _shared_prefixes(state: Mapping[str, Expr]) -> Iterator[str]:
    """What all names begin with, up to each dot, the shortest first; every name has a rest."""
    parts = next(iter(state), "").split(".")
    for count in range(1, len(parts)):
        prefix = ".".join(parts[:count]) + "."
        if not all(name.startswith(prefix) and name != prefix for name in state):
            return
        yield prefix


def renamed(checkpoint: Checkpoint, names: Mapping[str, str]) -> Checkpoint:
    """The tensors of a checkpoint that are named here, by their new names.

    Args:
        checkpoint: what is known of each tensor goes with it.
        names: of tensors, old → new.
    """
    return replace(
        checkpoint,
        state={new: checkpoint.state[old] for old, new in names.items()},
        packed={new: checkpoint.packed[o] for o, new in names.items() if o in checkpoint.packed},
        plain=frozenset(new for old, new in names.items() if old in checkpoint.plain),
    )
