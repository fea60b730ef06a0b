from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from torch2mlx.verification.looping import greedy_texts
from torch2mlx.verification.reference import build_reference
from torch2mlx.verification.twin import disturb


def test_texts_are_those_of_one_prompt_at_a_time(llama_config: Callable[..., Any]) -> None:
    """Against the whole sequence anew for each token, and cut at the end of text."""
    config = llama_config(num_hidden_layers=1, vocab_size=60, eos_token_id=5)
    model: Any = build_reference(config)
    disturb(model, 0)
    with torch.no_grad():
        model.lm_head.weight[5] *= 1.5
    prompts = [np.random.default_rng(i).integers(6, 60, 8) for i in range(20)]
    expected = []
    for prompt in prompts:
        ids = torch.from_numpy(prompt)[None]
        while ids.shape[1] < 8 + 12:
            with torch.no_grad():
                token = int(model(input_ids=ids, use_cache=False).logits[0, -1].argmax())
            if token == 5:
                break
            ids = torch.cat([ids, torch.tensor([[token]])], 1)
        expected.append(ids[0, 8:].tolist())
    assert greedy_texts(model, prompts, 12) == expected
    lengths = {len(text) for text in expected}
    assert len(lengths) > 1  # some ended, some did not
