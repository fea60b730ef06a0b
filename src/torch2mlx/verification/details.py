"""What the gate saw beside its verdict: for pictures and for a later check without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from torch2mlx.verification.audit_report import TensorCheck

__all__ = ["Details", "ReferenceRun", "Sample", "thin_logits"]

Array = np.ndarray[Any, Any]

_COLUMNS = 4096  # tokens of the vocabulary whose logits are kept


@dataclass(frozen=True)
class Sample:
    """A text that both models wrote, always taking the most likely token.

    Attributes:
        prompt: what both continue.
        pytorch: the original's text.
        mlx: the written folder's text.
        tokens: number of tokens of `mlx`.
        same: number of first tokens that are equal.
    """

    prompt: str
    pytorch: str
    mlx: str
    tokens: int
    same: int


@dataclass(frozen=True, eq=False)
class ReferenceRun:
    """What PyTorch computes with the very values of the written files, in float32.

    Attributes:
        tokens: ids [positions].
        columns: ids of the vocabulary whose logits are kept, evenly spread, [kept].
        logits: float32 [positions, kept].
        top: the most likely id of the whole vocabulary at each position, [positions].
        relative: how far MLX was from it, relative L2 over the kept logits.
        tolerance: bound on that.
    """

    tokens: Array
    columns: Array
    logits: Array
    top: Array
    relative: float
    tolerance: float


@dataclass(frozen=True, eq=False)
class Details:
    """Everything of a report that no verdict needs.

    Attributes:
        checks: the audit's, tensor by tensor.
        divergences: KL divergence from the original in nats, [windows][positions].
        samples: texts of both sides.
        reference: for a later check without PyTorch; None where the model was not run whole.
    """

    checks: tuple[TensorCheck, ...] = ()
    divergences: tuple[tuple[float, ...], ...] = ()
    samples: tuple[Sample, ...] = ()
    reference: ReferenceRun | None = None


def thin_logits(logits: Array) -> tuple[Array, Array]:
    """Evenly spread columns of logits [positions, vocabulary], and their logits.

    At most 4096 columns are kept, so that 45 positions take 0.7 MB whatever the vocabulary.
    """
    step = max(1, -(-logits.shape[-1] // _COLUMNS))
    columns = np.arange(0, logits.shape[-1], step, dtype=np.int32)
    return columns, np.ascontiguousarray(logits[:, columns], dtype=np.float32)
