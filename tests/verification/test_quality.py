from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from torch2mlx.errors import OptionError
from torch2mlx.verification.quality import (
    evaluation_text,
    measure_quality,
    tail_loop_rate,
    text_windows,
)
from torch2mlx.verification.reference import build_reference
from torch2mlx.verification.twin import disturb


@pytest.fixture
def models(llama_config: Callable[..., Any]) -> tuple[torch.nn.Module, torch.nn.Module]:
    pair = []
    for seed in (0, 0):
        model = build_reference(llama_config(num_hidden_layers=1, vocab_size=300))
        disturb(model, seed)
        pair.append(model)
    with torch.no_grad():
        for weight in pair[1].parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=torch.manual_seed(1)))
    return pair[0], pair[1]


def test_figures_are_those_of_torch(models: tuple[torch.nn.Module, torch.nn.Module]) -> None:
    windows = [np.random.default_rng(i).integers(0, 300, 90) for i in range(3)]
    found = measure_quality(*models, windows)
    losses, other, kl, same = [], [], [], []
    for window in windows:
        ids = torch.from_numpy(window)[None]
        with torch.no_grad():
            a, b = (m(input_ids=ids).logits[0, :-1].double() for m in models)
        losses.append(torch.nn.functional.cross_entropy(a, ids[0, 1:]))
        other.append(torch.nn.functional.cross_entropy(b, ids[0, 1:]))
        log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
        kl.append(
            torch.nn.functional.kl_div(log_b, log_a, log_target=True, reduction="batchmean").item()
        )
        same.append((a.argmax(-1) == b.argmax(-1)).double().mean().item())
    assert found.reference_perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-9)
    assert found.perplexity == pytest.approx(math.exp(np.mean(other)), rel=1e-9)
    assert found.kl == pytest.approx(np.mean(kl), rel=1e-9)
    assert found.kl_error == pytest.approx(np.std(kl, ddof=1) / 3**0.5, rel=1e-9)
    assert found.top1 == pytest.approx(np.mean(same))
    assert 0 < found.top1 < 1
    assert (found.windows, found.tokens) == (3, 3 * 89)


def test_a_model_equals_itself(models: tuple[torch.nn.Module, torch.nn.Module]) -> None:
    found = measure_quality(models[0], models[0], [np.arange(20), np.arange(20, 40)])
    assert (found.kl, found.top1) == (0.0, 1.0)
    assert found.perplexity == found.reference_perplexity
    budget = found.budget()
    assert budget.passed
    assert json.loads(json.dumps(budget.to_dict()))["figures"]["mean_kl"] == 0.0


def test_windows_are_spread_over_the_text() -> None:
    windows = text_windows(lambda text: list(range(len(text))), "x" * 1000, count=4, length=100)
    assert [w[0] for w in windows] == [0, 300, 600, 900]
    assert all(len(w) == 100 for w in windows)
    assert len(text_windows(lambda t: list(range(101)), "", count=9, length=100)) == 2


def test_a_text_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(OptionError, match="has 5 tokens"):
        text_windows(lambda text: [1, 2, 3, 4, 5], "short", length=6)


def test_the_built_in_text_is_long_varied_and_plain() -> None:
    text = evaluation_text()
    assert 20_000 <= len(text) <= 40_000
    assert text.isascii()
    lines = [line for line in text.splitlines() if line]
    assert len(set(lines)) > 0.95 * len(lines)
    words = text.lower().split()
    assert len(set(words)) > 1500


@pytest.mark.parametrize(
    ("ids", "stuck"),
    [
        (list(range(100)), False),
        ([*range(70), *([5, 6, 7, 8] * 6)], True),  # four tokens, six times: 24
        ([*range(70), *([5, 6, 7, 8] * 5), 5, 6, 7], False),  # 23 tokens
        ([*range(70), *([9] * 24)], True),
        ([*range(30), *(list(range(200, 240)) * 3)], True),  # longest period, three times
        ([*range(30), *(list(range(200, 240)) * 2)], False),
        ([*range(30), *(list(range(200, 241)) * 3)], False),  # too long a period
        ([*([1, 2, 3] * 20), *range(50, 80)], False),  # looped, then went on
        ([*range(40), *([1, 2, 3] * 10), 1, 2], True),  # cut off within a period
        ([7] * 10, False),
    ],
)
def test_loops_at_the_end_of_a_text(ids: list[int], stuck: bool) -> None:
    assert tail_loop_rate([ids]) == float(stuck)


def test_the_rate_is_a_share_of_the_texts() -> None:
    assert tail_loop_rate([[1] * 50, list(range(50)), list(range(50)), list(range(50))]) == 0.25
    with pytest.raises(OptionError):
        tail_loop_rate([])
