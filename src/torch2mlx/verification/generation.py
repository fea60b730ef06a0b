"""A few tokens of text by a PyTorch model, to be shown beside the same model's in MLX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from torch2mlx.verification.looping import greedy_texts

if TYPE_CHECKING:
    import torch

__all__ = ["PROMPT", "continue_text", "shared_start"]

PROMPT = "The sky is blue because"

_TOKENS = 16


def continue_text(model: torch.nn.Module, prompt: Sequence[int]) -> tuple[int, ...]:
    """What a model writes after a prompt, taking the most likely token each time.

    Args:
        model: a language model of transformers.
        prompt: token ids, at least one.

    Returns:
        up to 16 ids, without the prompt; none where transformers cannot generate with the model,
        since a sample only illustrates.
    """
    try:
        return tuple(greedy_texts(model, [np.asarray(prompt)], _TOKENS)[0])
    except Exception:  # caches and configs of a hundred families, none of which counts here
        return ()


def shared_start(text: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens two texts have in common."""
    pairs = zip(text, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(text), len(other)))
