from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torch2mlx.dtypes import DTYPES
from torch2mlx.errors import PlanError
from torch2mlx.planning.expressions import Source
from torch2mlx.planning.regions import full
from torch2mlx.verification.depth import thin_config
from torch2mlx.verification.layers import layer_signatures
from torch2mlx.verification.thinning import LayerNames, cut_experts, cut_vocabulary, pick_layers

Config = dict[str, Any]

JAMBA = {
    "model_type": "jamba",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "mamba_d_state": 8,
    "mamba_dt_rank": 4,
    "vocab_size": 256,
}


@pytest.mark.parametrize("layer", [0, 1, 4, 7, 12, 15])
def test_single_layers_of_a_schedule_stay_what_they_are(layer: int) -> None:
    whole = layer_signatures(JAMBA)
    assert len(set(whole)) == 3  # state space with and without experts, attention
    assert layer_signatures(thin_config(JAMBA, [layer])) == [whole[layer]]


@pytest.mark.parametrize("layers", [[0], [3], [2, 3], [60]])
def test_leading_dense_layers_are_counted_again(
    hub: Mapping[str, Config], layers: list[int]
) -> None:
    config = {**hub["deepseek3"], "hidden_size": 128, "n_routed_experts": 16}
    whole = layer_signatures(config)
    thin = thin_config(config, layers)
    assert thin["first_k_dense_replace"] == sum(i < 3 for i in layers)
    assert layer_signatures(thin) == [whole[i] for i in layers]


@pytest.mark.parametrize("layers", [[0], [5], [25], [6, 7, 8, 9, 10, 11]])
def test_window_patterns_follow(hub: Mapping[str, Config], layers: list[int]) -> None:
    whole = layer_signatures(hub["gemma3"])
    assert layer_signatures(thin_config(hub["gemma3"], layers)) == [whole[i] for i in layers]


def test_values_listed_per_layer_are_picked(hub: Mapping[str, Config]) -> None:
    kinds = ["full_attention", "sliding_attention"] * 12
    config = {**hub["qwen2"], "layer_types": kinds, "use_sliding_window": True}
    assert thin_config(config, [1, 4])["layer_types"] == ["sliding_attention", "full_attention"]


def _state(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Source]:
    return {name: Source(name, DTYPES["F32"], shape) for name, shape in shapes.items()}


class Numbers:
    """Every element of a tensor is its flat index."""

    def __init__(self, state: Mapping[str, Source]) -> None:
        self.state = state

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Any:
        shape = self.state[name].shape
        return np.arange(np.prod(shape), dtype="<f4").reshape(shape)[start:stop]


def test_layers_are_found_past_towers_and_renumbered() -> None:
    state = _state(
        {
            "vision_tower.layers.0.w": (1,),
            "vision_tower.layers.1.w": (1,),
            "vision_tower.layers.2.w": (1,),
            "language_model.model.layers.0.mlp.experts.0.w": (2,),
            "language_model.model.layers.1.mlp.experts.0.w": (3,),
            "language_model.model.layers.2.w": (4,),
            "language_model.model.norm.w": (5,),
        }
    )
    names = LayerNames.of(state, 2)
    assert names.prefix == "language_model.model.layers."
    picked = pick_layers(state, names, [1])
    assert picked["language_model.model.layers.0.mlp.experts.0.w"].shape == (3,)
    assert "language_model.model.layers.2.w" not in picked
    assert "language_model.model.norm.w" in picked


def test_a_checkpoint_without_those_layers_is_an_error() -> None:
    with pytest.raises(PlanError, match="not numbered as 4 layers"):
        LayerNames.of(_state({"model.layers.0.w": (1,), "model.layers.1.w": (1,)}), 4)


def test_the_vocabulary_is_cut_to_rows_of_its_middle(hub: Mapping[str, Config]) -> None:
    state = _state(
        {"model.embed_tokens.weight": (1000, 4), "lm_head.bias": (1000,), "model.norm.w": (4,)}
    )
    config, cut = cut_vocabulary({**hub["llama3"], "vocab_size": 1000}, state, rows=100)
    assert config["vocab_size"] == 100
    assert max(config["bos_token_id"], *config["eos_token_id"]) < 100
    assert cut["model.norm.w"].shape == (4,)
    rows = cut["model.embed_tokens.weight"]
    assert rows.shape == (100, 4)
    assert rows.read(full(rows.shape), Numbers(state))[0, 0] == 450 * 4
    assert cut["lm_head.bias"].read((range(100),), Numbers(state))[0] == 450


def test_experts_are_cut_with_their_rows_of_the_router(hub: Mapping[str, Config]) -> None:
    prefix = "model.layers.0.mlp."
    state = _state(
        {
            prefix + "experts.3.up_proj.weight": (8, 4),
            prefix + "experts.200.up_proj.weight": (8, 4),
            prefix + "gate.weight": (256, 4),
            prefix + "gate.e_score_correction_bias": (256,),
            "model.layers.0.self_attn.q_proj.weight": (256, 4),
        }
    )
    config, cut = cut_experts(hub["deepseek3"], state, LayerNames("model.layers."), 16)
    assert (config["n_routed_experts"], config["num_experts_per_tok"]) == (16, 8)
    assert (config["n_group"], config["topk_group"]) == (8, 4)
    assert prefix + "experts.200.up_proj.weight" not in cut
    assert cut[prefix + "gate.weight"].shape == (16, 4)
    assert cut[prefix + "gate.e_score_correction_bias"].shape == (16,)
    assert cut["model.layers.0.self_attn.q_proj.weight"].shape == (256, 4)


def test_configs_are_not_changed_in_place(hub: Mapping[str, Config], tmp_path: Path) -> None:
    before = repr(hub["deepseek3"])
    thin_config(hub["deepseek3"], [4])
    cut_vocabulary(hub["deepseek3"], {})
    cut_experts(hub["deepseek3"], {}, LayerNames("model.layers."), 8)
    assert repr(hub["deepseek3"]) == before
