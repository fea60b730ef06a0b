from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from torch2mlx.architectures.drops import drop_reason
from torch2mlx.architectures.port import load_port
from torch2mlx.dtypes import parse_dtype
from torch2mlx.errors import PlanError
from torch2mlx.planning.expressions import Expr, Source

LLAMA = {"model_type": "llama", "num_hidden_layers": 4, "tie_word_embeddings": True}


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", "rotary"),
        ("model.layers.0.attention.rope.inv_freq", "rotary"),
        ("vision_tower.encoder.layers.0.mlp.fc1.bias", "vision"),
        ("model.visual.patch_embed.proj.weight", "vision"),
        ("multi_modal_projector.linear_1.weight", "vision"),
        ("model.embed_audio.embedding.weight", "audio"),
        ("mtp.fc.weight", "multi-token"),
        ("model.mtp_block.0.mlp.up_proj.weight", "multi-token"),
        ("model.layers.4.eh_proj.weight", "past the last of 4"),
        ("model.layers.1.mlp.down_proj.input_scale", "activations"),
        ("lm_head.weight", "tied"),
    ],
)
def test_known_reasons(name: str, word: str) -> None:
    assert word in (drop_reason(name, (4, 4), LLAMA) or "")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.mlp.moe_statics.e_score_correction_bias",
        "model.layers.1.mlp.experts.7.up_proj.weight",  # an expert's number, not a layer's
        "model.layers.1.mlp.down_proj.weight_scale_inv",  # the weights mean nothing without
        "model.layers.1.self_attn.q_norm.weight",
        "model.layers.1.self_attn.supervision.weight",
    ],
)
def test_what_the_model_needs_has_no_reason(name: str) -> None:
    assert drop_reason(name, (4, 4), LLAMA) is None


def test_an_untied_head_is_needed() -> None:
    assert drop_reason("lm_head.weight", (4, 4), {**LLAMA, "tie_word_embeddings": False}) is None


def test_a_mask_is_told_from_a_learned_bias() -> None:
    assert drop_reason("h.0.attn.bias", (1, 1, 8, 8), {"n_layer": 2})
    assert drop_reason("h.0.attn.bias", (8,), {"n_layer": 2}) is None


def test_families_declare_reasons_of_their_own() -> None:
    text = {"model_type": "gemma4_text", "num_hidden_layers": 4, "num_kv_shared_layers": 2}
    config = {"model_type": "gemma4", "text_config": text}
    shared = "model.language_model.layers.{}.self_attn.k_proj.weight"
    assert drop_reason(shared.format(2), (4, 4), config)
    assert drop_reason(shared.format(1), (4, 4), config) is None
    longcat = {"model_type": "longcat_flash", "n_routed_experts": 4, "num_layers": 2}
    expert = "model.layers.0.mlp.experts.{}.up_proj.weight"
    assert drop_reason(expert.format(4), (4, 4), longcat)
    assert drop_reason(expert.format(3), (4, 4), longcat) is None


def _state(config: Mapping[str, Any]) -> dict[str, Expr]:
    """Tensors of every parameter under the port's own names, which ports take as well."""
    return {
        name: Source(name, parse_dtype("float32"), target.shape)
        for name, target in load_port(dict(config)).targets.items()
    }


@pytest.fixture
def ernie() -> dict[str, Any]:
    return {
        "model_type": "ernie4_5_moe",
        "hidden_size": 32,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 64,
        "moe_num_experts": 4,
        "moe_k": 2,
    }


def test_a_port_that_leaves_out_what_selects_experts_is_refused(ernie: dict[str, Any]) -> None:
    state = _state(ernie)
    bias = "model.layers.1.mlp.moe_statics.e_score_correction_bias"
    assert not load_port(ernie).map_state(state).dropped
    state[bias] = Source(bias, parse_dtype("float32"), (1, 4))
    with pytest.raises(PlanError, match="no known reason") as caught:
        load_port(ernie).map_state(state)
    assert f"{bias} [1, 4]" in str(caught.value)
    assert "'ernie4_5_moe'" in str(caught.value)


def test_known_drops_are_told(ernie: dict[str, Any]) -> None:
    state = _state(ernie)
    name = "model.mtp_block.0.mlp.up_proj.weight"
    state[name] = Source(name, parse_dtype("float32"), (48, 32))
    assert list(load_port(ernie).map_state(state).dropped) == [name]


def test_what_a_rule_takes_out_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch2mlx.architectures import registry

    def forget(state: Mapping[str, Expr], config: Mapping[str, Any]) -> dict[str, Expr]:
        return {name: expr for name, expr in state.items() if "extra" not in name}

    monkeypatch.setitem(registry._registry(), "llama", registry.Rules("llama", rename=forget))
    config = {
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "vocab_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 2, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    state = _state(config)
    state["model.extra.weight"] = Source("model.extra.weight", parse_dtype("float32"), (4,))
    with pytest.raises(PlanError, match="extra"):
        load_port(config).map_state(state)
