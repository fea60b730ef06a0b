"""Configs in the port's terms: compared with transformers' meaning and the port's arguments."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from torch2mlx.architectures.normalize import normalize_config
from torch2mlx.errors import UnsupportedError

TINY: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def _rope(theta: float = 5000.0, **settings: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, **settings}


def test_rope_parameters_become_theta() -> None:
    config = normalize_config({"model_type": "llama", "rope_parameters": _rope(), **TINY})
    assert config["rope_theta"] == 5000.0
    assert config["rope_scaling"] is None


def test_scaling_is_spelled_both_ways() -> None:
    rope = _rope(rope_type="linear", factor=4.0)
    scaling = normalize_config({"model_type": "llama", "rope_parameters": rope, **TINY})[
        "rope_scaling"
    ]
    assert scaling == {"rope_type": "linear", "type": "linear", "factor": 4.0}


def test_legacy_scaling_gets_what_transformers_takes_for_granted() -> None:
    # YarnRoPE of mlx-lm assumes 4096 where the original context is left out.
    legacy = {"type": "yarn", "factor": 4.0}
    config = normalize_config(
        {
            "model_type": "qwen2",
            "max_position_embeddings": 128,
            "rope_scaling": legacy,
            "rope_theta": 700.0,
            **TINY,
        }
    )
    assert config["rope_theta"] == 700.0
    assert config["rope_scaling"]["original_max_position_embeddings"] == 128
    assert config["rope_scaling"]["type"] == config["rope_scaling"]["rope_type"] == "yarn"


def test_layer_types_with_rope_bases_of_their_own() -> None:
    rope = {"full_attention": _rope(9000.0), "sliding_attention": _rope(700.0)}
    config = normalize_config({"model_type": "gemma3_text", "rope_parameters": rope, **TINY})
    assert config["rope_theta"] == 9000.0
    assert config["rope_local_base_freq"] == 700.0


def test_defaults_come_from_transformers_not_from_the_port() -> None:
    from mlx_lm.models.llama import ModelArgs
    from transformers import LlamaConfig

    config = normalize_config({"model_type": "llama", **TINY})
    tied = inspect.signature(ModelArgs).parameters["tie_word_embeddings"].default
    assert LlamaConfig().tie_word_embeddings is False
    assert tied is True
    assert config["tie_word_embeddings"] is False
    assert config["rms_norm_eps"] == LlamaConfig().rms_norm_eps


def test_aliases_reach_the_port_under_its_own_name() -> None:
    # transformers calls it rotary settings, GPT-NeoX's port keeps the original's names.
    rope = _rope(partial_rotary_factor=0.25)
    config = normalize_config({"model_type": "gpt_neox", "rope_parameters": rope, **TINY})
    assert (config["rotary_emb_base"], config["rotary_pct"]) == (5000.0, 0.25)
    # dbrx counts `n_layers`; written here under the standard name.
    options = {"model_type": "dbrx", "num_hidden_layers": 3, "hidden_size": 16}
    assert normalize_config(options)["n_layers"] == 3


def test_dtype_is_spelled_both_ways() -> None:
    config = normalize_config({"model_type": "llama", "dtype": "bfloat16", **TINY})
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"


def test_nested_configs_are_normalised_too() -> None:
    text = {"model_type": "qwen3_vl_text", "rope_parameters": _rope(), "head_dim": 8, **TINY}
    config = normalize_config({"model_type": "qwen3_vl", "text_config": text})
    assert config["text_config"]["rope_theta"] == 5000.0
    assert config["text_config"]["num_key_value_heads"] == 32  # Qwen3VLTextConfig's default
    assert "tie_word_embeddings" in config["text_config"]


def test_values_that_are_there_stay_and_the_input_is_untouched() -> None:
    original = {"model_type": "llama", "rms_norm_eps": 0.5, "note": {"mine": [1]}, **TINY}
    before = repr(original)
    config = normalize_config(original)
    assert repr(original) == before
    assert config["rms_norm_eps"] == 0.5
    assert config["note"] == {"mine": [1]}
    assert config.items() >= original.items()


def test_a_second_time_changes_nothing() -> None:
    rope = _rope(rope_type="linear", factor=4.0)
    once = normalize_config({"model_type": "llama", "rope_parameters": rope, **TINY})
    assert normalize_config(once) == once


def test_types_that_transformers_does_not_know_are_still_respelled() -> None:
    own = {"model_type": "internlm2", "rms_norm_eps": 1e-5, "rope_parameters": _rope()}
    config = normalize_config({**own, **TINY})
    assert config["rope_theta"] == 5000.0


def test_types_without_a_port_are_left_alone() -> None:
    config = {"model_type": "no_such_model", "rope_parameters": _rope(), **TINY}
    assert normalize_config(config) == config


def test_what_nobody_knows_is_asked_for_by_name() -> None:
    with pytest.raises(UnsupportedError, match="'num_attention_heads'"):
        normalize_config({"model_type": "internlm2", "hidden_size": 16})


def test_another_model_of_the_same_name_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="MiniMax-Text-01"):
        normalize_config({"model_type": "minimax", **TINY})
    m2 = {"model_type": "minimax", "architectures": ["MiniMaxM2ForCausalLM"], "rotary_dim": 4}
    assert normalize_config({**m2, **TINY})["model_type"] == "minimax"


def test_layer_kinds_become_a_pattern_length_only_where_they_repeat() -> None:
    from torch2mlx.architectures.families.window_pattern import window_period

    near, far = "sliding_attention", "full_attention"
    assert window_period([near, near, far, near, near, far, near]) == 3
    assert window_period([far, far]) == 1
    assert window_period([near, far, far]) is None
    assert window_period([near, near]) is None


def test_a_converted_checkpoint_is_not_renamed_again() -> None:
    once = normalize_config({"model_type": "glm", **TINY})
    assert (once["model_type"], once["source_model_type"]) == ("glm4_moe", "glm")
    assert "source_model_type" not in normalize_config(once)
