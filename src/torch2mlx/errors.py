"""Every error that torch2mlx raises for a reason a user can act on.

    Torch2MLXError            base: catch this one; its text is one message, ready to show
    ├── OptionError           options that contradict each other or the model
    ├── SourceError           the checkpoint is missing, damaged, ambiguous or not a checkpoint
    ├── UnsupportedError      understood, but no route converts it
    │   └── CompileError      a module cannot be exported or has no counterpart in MLX
    ├── PlanError             tensors and model do not fit together (missing, extra, misshapen)
    ├── NumericError          NaN, Inf or overflow in a tensor
    ├── DestinationError      the destination exists, cannot be written, or the disk is full
    └── ParityError           the result differs from PyTorch
        └── QualityError      it is right, but quantization cost more than was allowed

A message names the file or tensor, what was expected and found, and what to do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = [
    "CompileError",
    "DestinationError",
    "NumericError",
    "OptionError",
    "ParityError",
    "PlanError",
    "QualityError",
    "SourceError",
    "Torch2MLXError",
    "UnsupportedError",
]

# Control characters but for tabs and line ends, surrogates, and marks of direction.
_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


class Torch2MLXError(Exception):
    """Base of all errors with a message for the user; `exit_code` is the command line's."""

    exit_code = 1

    def __str__(self) -> str:
        """The message with names as terminals can show them.

        Names come from files: half a surrogate cannot be printed at all, and control characters
        would move the cursor or recolour what follows.
        """
        return _HIDDEN.sub(lambda found: ascii(found[0])[1:-1], super().__str__())


class OptionError(Torch2MLXError):
    """Options that contradict each other or the model."""

    exit_code = 2


class SourceError(Torch2MLXError):
    """The checkpoint is missing, damaged, ambiguous, or not a checkpoint at all."""

    exit_code = 3


class UnsupportedError(Torch2MLXError):
    """The checkpoint is understood, but nothing here converts it."""

    exit_code = 4


class CompileError(UnsupportedError):
    """A module that cannot be exported, or that computes what MLX cannot.

    Attributes:
        reasons: every one that was found, each with the line of the user's source.
    """

    def __init__(self, subject: str, reasons: Sequence[str]) -> None:
        self.reasons = tuple(reasons)
        listing = "".join(f"\n  - {reason}" for reason in self.reasons)
        super().__init__(f"{subject} cannot be compiled to MLX:{listing}")


class PlanError(Torch2MLXError):
    """Source tensors and target model do not fit together."""

    exit_code = 5


class NumericError(Torch2MLXError):
    """A tensor holds NaN or Inf, or overflows in the requested dtype."""

    exit_code = 6


class DestinationError(Torch2MLXError):
    """The destination exists already, cannot be written, or has no room."""

    exit_code = 7


class ParityError(Torch2MLXError):
    """The converted model does not equal the PyTorch original."""

    exit_code = 8


class QualityError(ParityError):
    """The converted model is right, but quantization cost more than the user allowed."""
