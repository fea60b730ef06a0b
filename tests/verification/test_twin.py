from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from torch2mlx.architectures import port as ports
from torch2mlx.errors import UnsupportedError
from torch2mlx.planning.expressions import Slice
from torch2mlx.planning.regions import full
from torch2mlx.verification import tolerance
from torch2mlx.verification.report import explain
from torch2mlx.verification.twin import run_twin

Config = dict[str, Any]


@pytest.mark.parametrize(
    "name", ["llama3", "qwen2", "gemma3", "mixtral", "deepseek3", "mamba2", "gpt2"]
)
def test_ports_equal_pytorch_at_every_length_and_through_the_cache(
    hub: Mapping[str, Config], name: str
) -> None:
    found = run_twin(hub[name])
    assert found.passed, explain(found)
    assert found.logits.relative < tolerance.ROUNDING
    assert found.cached is not None
    assert found.top1 == 1.0


def test_long_rope_is_run_on_both_sides_of_its_boundary(hub: Mapping[str, Config]) -> None:
    plain = {**hub["phi3"], "rope_scaling": None}
    assert run_twin(plain).passed
    # mlx-lm 0.32 uses the long factors at every length, so only long sequences are right.
    found = run_twin(hub["phi3"])
    assert not found.passed
    assert "original_max_position_embeddings=4096" in explain(found)


def test_every_layer_is_compared(hub: Mapping[str, Config]) -> None:
    found = run_twin(hub["deepseek3"])
    assert [d.place for d in found.layers] == ["layer 0", "layer 1", "layer 2", "layer 3"]
    assert max(d.relative for d in found.layers) < tolerance.ROUNDING


@pytest.fixture
def without_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that does not know of sliding windows."""
    load = ports.load_port

    def blind(config: Config) -> ports.Port:
        config = {k: v for k, v in config.items() if k != "layer_types"}
        return load({**config, "model_type": "llama", "sliding_window": None})

    monkeypatch.setattr(ports, "load_port", blind)


@pytest.mark.usefixtures("without_window")
def test_an_ignored_window_is_found_and_named(hub: Mapping[str, Config]) -> None:
    found = run_twin(hub["mistral"])
    assert not found.passed
    assert found.agrees_up_to == 4096
    message = explain(found)
    assert "sliding_window=4096" in message
    assert "--max-context 4096" in message


@pytest.mark.usefixtures("without_window")
def test_a_proof_limited_to_the_window_does_not_cross_it(hub: Mapping[str, Config]) -> None:
    assert run_twin(hub["mistral"], max_context=4096).passed
    assert not run_twin(hub["mistral"], max_context=4097).passed


def _change(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    original = ports.Port.map_state

    def mapped(self: ports.Port, state: Any) -> ports.PortMapping:
        mapping = original(self, state)
        outputs = dict(mapping.outputs)
        change(outputs)
        return replace(mapping, outputs=outputs)

    monkeypatch.setattr(ports.Port, "map_state", mapped)


def test_swapped_tensors_are_found_in_their_layer(
    hub: Mapping[str, Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    def swap(outputs: dict[str, Any]) -> None:
        gate, up = (f"model.layers.1.mlp.{n}_proj.weight" for n in ("gate", "up"))
        outputs[gate], outputs[up] = outputs[up], outputs[gate]

    _change(monkeypatch, swap)
    found = run_twin(hub["llama3"])
    assert not found.passed
    assert found.first_divergence is not None
    assert found.first_divergence.place == "layer 1"
    assert found.agrees_up_to is None


def test_swapped_norms_are_found_although_they_start_as_ones(
    hub: Mapping[str, Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    def swap(outputs: dict[str, Any]) -> None:
        one = "model.layers.0.input_layernorm.weight"
        two = "model.layers.0.post_attention_layernorm.weight"
        outputs[one], outputs[two] = outputs[two], outputs[one]

    _change(monkeypatch, swap)
    found = run_twin(hub["qwen2"])
    assert not found.passed
    assert "layer 0" in explain(found)


def test_experts_in_another_order_are_found(
    hub: Mapping[str, Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    def reverse(outputs: dict[str, Any]) -> None:
        name = "model.layers.1.block_sparse_moe.switch_mlp.up_proj.weight"
        expr = outputs[name]
        order = range(expr.shape[0] - 1, -1, -1)
        # Ranges of expressions ascend, so the order is turned by single slices.
        from torch2mlx.planning.expressions import Concat

        rest = full(expr.shape[1:])
        outputs[name] = Concat(tuple(Slice(expr, (range(i, i + 1), *rest)) for i in order), 0)

    _change(monkeypatch, reverse)
    assert not run_twin(hub["mixtral"]).passed


def test_a_model_type_that_transformers_lacks_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="--no-verify"):
        run_twin({"model_type": "no_such_model", "auto_map": {"AutoConfig": "x.Y"}})


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llama3", "rms_norm_eps", 1e-6),
        ("llama3", "rope_theta", 10000.0),
        ("llama3", "rope_scaling", None),
        ("gemma3", "rope_local_base_freq", 1000000.0),
        ("deepseek3", "norm_topk_prob", False),
        ("deepseek3", "topk_group", 1),
        ("gpt2", "layer_norm_epsilon", 1e-6),
    ],
)
def test_a_port_with_another_setting_is_found(
    hub: Mapping[str, Config], monkeypatch: pytest.MonkeyPatch, name: str, key: str, value: Any
) -> None:
    load = ports.load_port

    def other(config: Config) -> ports.Port:
        port = load(config)
        changed = {**port.config, key: value}
        return ports.Port(changed, port._model_class, type(port.args))

    monkeypatch.setattr(ports, "load_port", other)
    assert not run_twin(hub[name]).passed


def test_the_other_form_of_gelu_is_told_from_a_fault(
    hub: Mapping[str, Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The port of gpt_neox computes tanh-GELU for PyTorch's erf-GELU.
    config = {
        "model_type": "gpt_neox",
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "use_parallel_residual": True,
        "hidden_act": "gelu",
        "vocab_size": 50304,
        "tie_word_embeddings": False,
    }
    found = run_twin(config)
    assert not found.passed
    assert tolerance.ROUNDING < found.logits.relative < tolerance.GELU
    assert "form of GELU" in " ".join(found.notes)
    # A difference of the same size from another cause is not put down to it.
    load = ports.load_port

    def other(config: Config) -> ports.Port:
        port = load(config)
        theta = {"rope_theta": port.config["rope_theta"] * 1.001}
        return ports.Port({**port.config, **theta}, port._model_class, type(port.args))

    monkeypatch.setattr(ports, "load_port", other)
    wrong = run_twin(hub["llama3"])
    assert tolerance.CONVERSION < wrong.logits.relative < tolerance.GELU
    assert not wrong.passed
    assert "form of GELU" not in " ".join(wrong.notes)


SPARSE = {
    "model_type": "deepseek_v32",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "index_n_heads": 64,
    "index_head_dim": 128,
    "index_topk": 2048,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 3,
    "n_group": 8,
    "topk_group": 4,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "moe_layer_freq": 1,
    "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def test_sparse_attention_is_proven_without_ties_between_tokens() -> None:
    # Relus of few heads are all zero for many tokens, and the choice among those is arbitrary.
    for seed in range(3):
        found = run_twin(SPARSE, seed=seed)
        assert found.passed, explain(found)


def test_sparse_attention_with_few_heads_is_refused() -> None:
    found = run_twin({**SPARSE, "index_n_heads": 2})
    assert not found.passed
    assert "equal tokens" in " ".join(found.notes)


def test_sparse_attention_to_other_tokens_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def swap(outputs: dict[str, Any]) -> None:
        one, two = (f"model.layers.{i}.self_attn.indexer.wk.weight" for i in (0, 1))
        outputs[one], outputs[two] = outputs[two], outputs[one]

    _change(monkeypatch, swap)
    assert not run_twin(SPARSE).passed
