from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from torch2mlx.verification.layers import layer_signatures
from torch2mlx.verification.reference import build_skeleton
from torch2mlx.verification.shrinking import boundaries, shrink_config
from torch2mlx.verification.sizes import RUN_LENGTH

Config = dict[str, Any]


@pytest.mark.parametrize(
    "name",
    ["llama3", "qwen2", "mistral", "gemma3", "phi3", "mixtral", "deepseek3", "mamba2", "gpt2"],
)
def test_tiny_models_are_tiny_and_keep_their_flags(hub: Mapping[str, Config], name: str) -> None:
    config = hub[name]
    tiny = shrink_config(config)
    assert sum(p.numel() for p in build_skeleton(tiny).parameters()) < 4_000_000
    flags = {k for k, v in config.items() if isinstance(v, (bool, str)) and not k.endswith("dtype")}
    assert {k: tiny[k] for k in flags} == {k: config[k] for k in flags}
    assert "rope_parameters" not in tiny


def test_a_tiny_model_shows_every_kind_of_layer(hub: Mapping[str, Config]) -> None:
    kinds = [kinds_of(s) for s in layer_signatures(shrink_config(hub["gemma3"]))]
    assert kinds == ["sliding_attention"] * 5 + ["full_attention"]
    assert shrink_config(hub["deepseek3"])["num_hidden_layers"] == 4  # three dense, one sparse


def kinds_of(signature: Any) -> str:
    """The layer type in a signature: the per-layer value that names one."""
    return next(v for v in signature[0] if "attention" in v)


@pytest.mark.parametrize(("heads", "kv"), [(32, 32), (32, 8), (16, 1), (14, 2), (12, 4)])
def test_attention_keeps_its_grouping(hub: Mapping[str, Config], heads: int, kv: int) -> None:
    config = {**hub["llama3"], "num_attention_heads": heads, "num_key_value_heads": kv}
    config["hidden_size"] = heads * 64
    tiny = shrink_config(config)
    new_heads, new_kv = tiny["num_attention_heads"], tiny["num_key_value_heads"]
    assert new_heads % new_kv == 0
    assert (new_kv == 1) == (kv == 1)
    assert (new_heads == new_kv) == (heads == kv)
    assert tiny["hidden_size"] == new_heads * 16


def test_windows_and_long_rope_are_within_the_run(hub: Mapping[str, Config]) -> None:
    assert shrink_config(hub["mistral"])["sliding_window"] < RUN_LENGTH
    tiny = shrink_config(hub["phi3"])
    assert tiny["original_max_position_embeddings"] < RUN_LENGTH
    ratio = tiny["max_position_embeddings"] / tiny["original_max_position_embeddings"]
    assert ratio == 131072 / 4096
    assert len(tiny["rope_scaling"]["long_factor"]) == 8


def test_boundaries_are_told_by_their_real_lengths(hub: Mapping[str, Config]) -> None:
    found = boundaries(hub["phi3"])
    assert [(b.key, b.original, b.whole_run) for b in found] == [
        ("original_max_position_embeddings", 4096, True),  # its window is beyond any context
    ]
    assert boundaries(hub["phi3"], max_context=4096) == ()
    assert [b.original for b in boundaries(hub["gemma3"])] == [512]


def test_a_limited_proof_moves_boundaries_out_of_reach(hub: Mapping[str, Config]) -> None:
    tiny = shrink_config(hub["gemma3"], max_context=512)
    assert tiny["sliding_window"] > RUN_LENGTH


def test_special_tokens_stay_in_the_vocabulary(hub: Mapping[str, Config]) -> None:
    tiny = shrink_config(hub["llama3"])
    ids = {tiny["bos_token_id"], *tiny["eos_token_id"]}
    assert len(ids) == 4
    assert max(ids) < tiny["vocab_size"]


def test_the_config_of_the_caller_is_untouched(hub: Mapping[str, Config]) -> None:
    before = repr(hub["phi3"])
    shrink_config(hub["phi3"])
    assert repr(hub["phi3"]) == before


@pytest.mark.parametrize("share", [0.25, 0.334, 0.4, 0.5, 0.75])
def test_an_even_number_of_values_is_rotated(hub: Mapping[str, Config], share: float) -> None:
    config = {**hub["mistral"], "partial_rotary_factor": share, "rope_scaling": None}
    tiny = shrink_config({**config, "model_type": "glm", "pad_token_id": 1})
    assert int(tiny["head_dim"] * share) % 2 == 0
    assert tiny["head_dim"] <= 32


def test_nested_language_models_shrink_in_place(hub: Mapping[str, Config]) -> None:
    text = {k: v for k, v in hub["gemma3"].items() if k != "sliding_window_pattern"}
    config = {"model_type": "gemma3", "text_config": text, "image_token_index": 262144}
    tiny = shrink_config(config)
    assert tiny["text_config"]["hidden_size"] < 128
    assert tiny["text_config"]["num_hidden_layers"] == 6
    assert tiny["vision_config"]["hidden_size"] == 32
    assert tiny["image_token_index"] < 256
    assert sum(p.numel() for p in build_skeleton(tiny).parameters()) < 2_000_000
