from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from zoo import CASES

from torch2mlx.architectures import registry
from torch2mlx.architectures.registry import Rules, rename_state, rules_for
from torch2mlx.dtypes import parse_dtype
from torch2mlx.errors import PlanError
from torch2mlx.planning.expressions import Source


def test_every_declared_rule_has_a_case_in_the_zoo() -> None:
    nested = {"gemma3n_text", "qwen3_vl_moe_text"}
    assert set(registry._registry()) - {c.model_type for c in CASES} <= nested


def test_two_families_cannot_claim_one_type(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    twice = SimpleNamespace(RULES=(Rules("llama"),))
    monkeypatch.setattr(importlib, "import_module", lambda name: twice)
    registry._registry.cache_clear()
    try:
        with pytest.raises(ValueError, match="'llama'"):
            rules_for("llama")
    finally:
        registry._registry.cache_clear()


def _state(*names: str) -> Mapping[str, Any]:
    return {name: Source(name, parse_dtype("float32"), (4, 4)) for name in names}


def test_a_type_without_rules_keeps_its_names() -> None:
    state = _state("model.norm.weight")
    assert rename_state(state, {"model_type": "llama"}) == state


def test_a_nested_type_is_renamed_by_its_own_rules() -> None:
    config = {"model_type": "llama4", "source_model_type": "llama4_text"}
    assert list(rename_state(_state("lm_head.weight"), config)) == ["language_model.lm_head.weight"]


def test_a_missing_tensor_is_named() -> None:
    with pytest.raises(PlanError, match="embed_tokens"):
        rename_state(_state("lm_head.weight"), {"model_type": "minicpm3"})
