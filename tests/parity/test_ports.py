from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from checkpoints import TOLERANCE, Saved, port_error, prepare, quiet_libraries
from zoo import CASES, REFUSED, Case

from torch2mlx.architectures.limits import known_limits
from torch2mlx.architectures.normalize import normalize_config
from torch2mlx.errors import Torch2MLXError


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quiet_libraries()


def test_the_table_is_wide_enough() -> None:
    assert len(CASES) >= 56
    assert len({case.model_type for case in CASES}) >= 45
    assert max(Counter(case.name for case in CASES).values()) == 1
    assert set(REFUSED) <= {case.name for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_port_equals_pytorch_or_says_why_not(case: Case, tmp_path: Path) -> None:
    saved = prepare(case, tmp_path)
    for config in (saved.config, saved.flat):
        if config is not None:
            _check(case, saved, config)


def _check(case: Case, saved: Saved, config: dict[str, object]) -> None:
    limits = known_limits(config)
    expected = REFUSED.get(case.name)
    error, refusal = _outcome(saved, config)
    if not refusal:
        _read_by_transformers(config)
    if expected is None:
        assert not refusal
        assert error < TOLERANCE
        assert not limits
    else:
        assert refusal or error > TOLERANCE, f"right ({error:.1e}): take it out of REFUSED"
        assert any(expected in reason for reason in (*limits, refusal)), (limits, refusal)


def _outcome(saved: Saved, config: dict[str, object]) -> tuple[float, str]:
    try:
        return port_error(saved, config), ""
    except Torch2MLXError as refusal:
        return float("inf"), str(refusal)


def _read_by_transformers(config: dict[str, object]) -> None:
    # Loading the tokenizer of a converted folder reads its config.json.
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    normalised = normalize_config(config)
    if normalised["model_type"] in CONFIG_MAPPING:
        CONFIG_MAPPING[normalised["model_type"]].from_dict(normalised)
