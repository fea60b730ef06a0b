from __future__ import annotations

import json
from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest

from torch2mlx.errors import ParityError
from torch2mlx.verification.comparison import difference, near_tie, sample_tokens
from torch2mlx.verification.report import (
    Budget,
    Comparison,
    LayerDifference,
    ParityReport,
    explain,
    require,
)

GOOD = Comparison(
    part="twin",
    model_type="llama",
    tokens=64,
    layers=(LayerDifference("layer 0", 1e-7, 1e-6), LayerDifference("layer 1", 2e-7, 1e-6)),
    logits=LayerDifference("logits", 3e-7, 1e-6),
    top1=1.0,
    tolerance=1e-4,
)
BAD = replace(
    GOOD,
    layers=(GOOD.layers[0], LayerDifference("layer 1", 0.2, 0.7, 0.5)),
    logits=LayerDifference("logits", 0.3, 1.1, 0.5),
    top1=0.25,
)


def test_the_first_layer_that_differs_is_named() -> None:
    assert GOOD.passed
    assert GOOD.first_divergence is None
    assert explain(GOOD) == ""
    assert not BAD.passed
    with pytest.raises(ParityError) as error:
        require(BAD)
    message = str(error.value)
    for part in ("llama", "twin", "layer 1", "2.0e-01", "50%", "--no-verify"):
        assert part in message
    require(GOOD)


def test_layers_that_differ_count_only_if_the_logits_do() -> None:
    # A port may add a residual later than PyTorch does; what comes out decides.
    assert replace(GOOD, layers=BAD.layers).passed


def test_the_cache_counts() -> None:
    cached = LayerDifference("logits through the cache", 0.5, 1.0, 1.0)
    failed = replace(GOOD, cached=cached)
    assert not failed.passed
    assert failed.first_divergence is cached
    assert "through the cache" in explain(failed)


def test_nan_never_passes() -> None:
    for value in (nan, inf):
        assert not replace(GOOD, logits=LayerDifference("logits", value, value)).passed
    found = difference("x", np.ones((2, 3)), np.array([[1, nan, 1], [1, 1, 1]]))
    assert found.relative == inf
    assert found.positions == 0.5
    assert "NaN or Inf" in explain(replace(GOOD, logits=found))


def test_differences_are_relative_l2() -> None:
    reference = np.array([[3.0, 4.0], [0.0, 12.0]])
    found = difference("x", reference, reference + np.array([[0.0, 0.0], [1.3, 0.0]]))
    assert found.relative == pytest.approx(0.1)
    assert found.maximum == pytest.approx(1.3)
    assert found.positions == 0.5


def test_a_report_passes_if_everything_that_ran_did() -> None:
    budget = Budget("conversion", {"relative_l2": 3e-7}, {"relative_l2": 1e-4})
    report = ParityReport((GOOD,), (budget,), {"passed": True}, {"blocks": "not asked for"})
    assert report.passed
    assert report.first_divergence is None
    assert not ParityReport().passed
    assert not replace(report, audit={"passed": False}).passed
    failed = replace(report, comparisons=(GOOD, BAD))
    assert not failed.passed
    assert failed.first_divergence == (BAD, BAD.layers[1])


def test_a_budget_needs_its_figures() -> None:
    assert not Budget("dtype", {}, {"relative_l2": 1e-2}).passed
    assert not Budget("dtype", {"relative_l2": nan}, {"relative_l2": 1e-2}).passed
    assert Budget("quantization", {"mean_kl": 0.4}).passed


def test_reports_are_plain_json() -> None:
    cached = LayerDifference("logits through the cache", inf, inf, 1.0)
    report = ParityReport((replace(BAD, cached=cached),), (Budget("dtype", {"kl": nan}),))
    text = json.dumps(report.to_dict(), allow_nan=False)
    loaded = json.loads(text)
    assert loaded["passed"] is False
    assert loaded["comparisons"][0]["first_divergence"] == "layer 1"
    assert loaded["comparisons"][0]["cached"]["relative"] is None


def test_a_single_token_in_a_routed_model_may_be_a_tie() -> None:
    moe = {"num_local_experts": 8}
    one = replace(BAD, layers=(LayerDifference("layer 0", 0.1, 1.0, 1 / 24),))
    assert near_tie(one, moe)
    assert not near_tie(one, {"model_type": "llama"})
    assert not near_tie(BAD, moe)
    assert not near_tie(GOOD, moe)


def test_sampled_tokens_avoid_special_ones() -> None:
    config = {
        "text_config": {"vocab_size": 20, "eos_token_id": [3, 4], "pad_token_id": None},
        "image_token_id": 5,
    }
    ids = sample_tokens(config, 500)
    assert set(ids.tolist()) == set(range(20)) - {3, 4, 5}
    assert (ids == sample_tokens(config, 500)).all()
