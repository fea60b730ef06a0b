"""What `convert` needs to know of a speech model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from torch2mlx.compiler.entry_points import EntryPoint
from torch2mlx.compiler.host import Host

__all__ = ["SpeechParts"]


@dataclass(frozen=True, eq=False)
class SpeechParts:
    """A speech model as methods to compile and what joins them.

    Attributes:
        module: that has the methods.
        entry_points: the methods with examples.
        host: what joins them.
        notes: what a user should know.
    """

    module: nn.Module
    entry_points: tuple[EntryPoint, ...]
    host: Host
    notes: tuple[str, ...] = ()
