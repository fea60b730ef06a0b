"""Greedy texts of a PyTorch model, many at a time: whether it gets stuck in repetition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from torch2mlx.verification.reference import quiet

if TYPE_CHECKING:
    import torch

__all__ = ["PROMPTS", "PROMPT_TOKENS", "TEXT_TOKENS", "greedy_texts"]

Array = np.ndarray[Any, Any]

PROMPTS, PROMPT_TOKENS = 64, 32
"""Prompts are of one length, so a batch needs no padding, which not every model bears."""

TEXT_TOKENS = 112

_BATCH = 16


def greedy_texts(
    model: torch.nn.Module,
    prompts: Sequence[Array],
    tokens: int = TEXT_TOKENS,
    progress: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """What a model continues prompts with, taking the most likely token each time.

    Args:
        model: transformers' language model.
        prompts: token ids [n], all of the same length.
        tokens: longest text; it ends sooner with the model's end of text.
        progress: called with the number of prompts done since its last call.

    Returns:
        token ids without the prompt and without the end of text.

    Memory: the caches of 16 texts.
    """
    import torch

    caller: Any = model
    stops = caller.config.get_text_config().eos_token_id
    ends = set(stops if isinstance(stops, list) else [stops]) - {None}
    texts: list[list[int]] = []
    for start in range(0, len(prompts), _BATCH):
        batch = np.stack(prompts[start : start + _BATCH]).astype(np.int64)
        ids = torch.from_numpy(batch)
        with torch.no_grad(), quiet():
            found = caller.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=min(ends, default=0),
            )
        for row in found[:, batch.shape[1] :].tolist():
            end = next((i for i, token in enumerate(row) if token in ends), len(row))
            texts.append(row[:end])
        if progress:
            progress(len(batch))
    return texts
