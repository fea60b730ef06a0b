"""What `convert` needs to know of a speech model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from torch2mlx.compiler.entry_points import EntryPoint
from torch2mlx.compiler.host import Host
from torch2mlx.errors import UnsupportedError

__all__ = ["SpeechParts", "check_frames"]

_MOST = 20_000  # frames of a text of some 20 tokens; real ones have a hundred


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


def check_frames(tokens: int, frames: int) -> None:
    """Raise UnsupportedError where a text becomes so long that memory would not hold it."""
    if frames > _MOST:
        raise UnsupportedError(
            f"{tokens} tokens become {frames:,} frames; with these weights nothing can be spoken, "
            "nor compared"
        )
