"""Calibration data that the model writes itself.

A model's own text is what it will see when it generates, and it needs no file (as LLM-QAT,
arXiv 2305.17888, makes its training data).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from torch2mlx.errors import OptionError
from torch2mlx.sources.base import Checkpoint
from torch2mlx.verification.blocks import peak_bytes
from torch2mlx.verification.reference import build_reference, quiet, read_state

__all__ = ["sampled_ids"]

Array = np.ndarray[Any, Any]

_BATCH = 16


def sampled_ids(
    checkpoint: Checkpoint,
    tokens: int,
    length: int,
    *,
    memory_limit: int,
    trust_remote_code: bool = False,
    seed: int = 0,
) -> Array:
    """Sequences drawn from the original model, at temperature 1.

    Args:
        checkpoint: the source.
        tokens: wanted in all.
        length: of a sequence; the first token of each begins a text.
        memory_limit: bytes that the model may take in float32.
        trust_remote_code: allow the checkpoint's own code.
        seed: of the draws; the same one gives the same tokens on the same kind of machine.

    Returns:
        int64 [sequences, length].

    Raises:
        OptionError: the whole model does not fit the memory.
    """
    import torch

    need = peak_bytes(checkpoint.config, checkpoint.state)
    if need > memory_limit:
        raise OptionError(
            f"--calibration-samples: the whole model in float32 ({need / 1e9:.1f} GB) exceeds "
            f"--memory-limit ({memory_limit / 1e9:.1f} GB); raise it, or calibrate with text alone"
        )
    model: Any = build_reference(
        checkpoint.config,
        read_state(checkpoint.state, checkpoint.source),
        checkpoint.folder,
        trust_remote_code,
    )
    count = max(1, tokens // length)
    first = _first_token(model.config.get_text_config())
    found = []
    with torch.random.fork_rng(devices=[]), torch.no_grad(), quiet():
        torch.manual_seed(seed)
        for start in range(0, count, _BATCH):
            ids = torch.full((min(_BATCH, count - start), 1), first)
            written = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=length - 1,  # the end of a text is followed by another's start
                max_new_tokens=length - 1,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                num_beams=1,
                pad_token_id=first,
            )
            found.append(written.numpy())
    return np.concatenate(found).astype(np.int64)


def _first_token(config: Any) -> int:
    """What a text begins with: its start or, where there is none, the end of the one before."""
    for value in (config.bos_token_id, config.eos_token_id):
        token = value[0] if isinstance(value, list) else value
        if token is not None:
            return int(token)
    return 0
