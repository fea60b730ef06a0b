from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from torch2mlx.architectures.port import Port
from torch2mlx.errors import PlanError
from torch2mlx.planning.expressions import Slice, Transpose
from torch2mlx.planning.regions import full
from torch2mlx.verification import tolerance
from torch2mlx.verification.blocks import choose_layers, peak_bytes, run_blocks
from torch2mlx.verification.report import explain

Config = dict[str, Any]


def test_a_small_model_is_compared_whole(
    save: Callable[..., Any], llama_config: Callable[..., Config]
) -> None:
    saved = save(llama_config(tie_word_embeddings=True))
    limit = peak_bytes(saved.config, saved.state)
    (found,) = run_blocks(saved.config, saved.state, saved.source, memory_limit=limit)
    assert found.part == "all layers"
    assert found.passed, explain(found)
    assert [d.place for d in found.layers] == [f"layer {i}" for i in range(4)]
    assert found.logits.relative < tolerance.ROUNDING
    assert found.cached is not None


def test_a_large_model_is_compared_layer_by_layer(
    save: Callable[..., Any], llama_config: Callable[..., Config]
) -> None:
    saved = save(llama_config(num_hidden_layers=9, vocab_size=2000))
    calls: list[tuple[str, int, int]] = []
    found = run_blocks(
        saved.config,
        saved.state,
        saved.source,
        memory_limit=peak_bytes(saved.config, saved.state) - 1,
        progress=lambda *call: calls.append(call),
    )
    assert all(c.passed for c in found), [explain(c) for c in found]
    parts = [c.part for c in found]
    assert parts[0] == "layer 0 of 9"
    assert parts[-1] == "layer 8 of 9"
    assert len(parts) == 4  # and two of a seeded sample
    assert [[d.place for d in c.layers] for c in found] == [[p[:7]] for p in parts]
    assert calls[-1] == ("layers", 4, 4)


def test_layers_that_cannot_stand_alone_run_with_their_neighbours(
    save: Callable[..., Any], hub: Mapping[str, Config]
) -> None:
    config = {
        **hub["gemma3"],
        "hidden_size": 64,
        "intermediate_size": 96,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "num_hidden_layers": 13,
        "vocab_size": 800,
        "sliding_window": 8,
    }
    saved = save(config)
    found = run_blocks(saved.config, saved.state, saved.source, memory_limit=1, sample=0)
    assert all(c.passed for c in found), [explain(c) for c in found]
    assert [c.part for c in found] == [f"layer {i} of 13" for i in (0, 5, 12)]


def test_experts_beyond_the_memory_limit_are_left_out(
    save: Callable[..., Any], hub: Mapping[str, Config]
) -> None:
    config = {
        **hub["mixtral"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 16,
        "vocab_size": 300,
    }
    saved = save(config)
    found = run_blocks(saved.config, saved.state, saved.source, memory_limit=700_000)
    assert all(c.passed for c in found), [explain(c) for c in found]
    assert all("the first 4 of 16 experts" in " ".join(c.notes) for c in found)


def test_the_first_wrong_layer_is_named(
    save: Callable[..., Any],
    llama_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved = save(llama_config())
    original = Port.map_state

    def wrong(self: Port, state: Any) -> Any:
        mapping = original(self, state)
        name = "model.layers.2.self_attn.o_proj.weight"
        outputs = {**mapping.outputs, name: Transpose(mapping.outputs[name], (1, 0))}
        return replace(mapping, outputs=outputs)

    monkeypatch.setattr(Port, "map_state", wrong)
    (found,) = run_blocks(saved.config, saved.state, saved.source, memory_limit=10**9)
    assert not found.passed
    assert found.first_divergence is not None
    assert found.first_divergence.place == "layer 2"
    assert found.layers[1].relative < tolerance.ROUNDING


def test_a_layer_with_rows_in_the_wrong_order_is_found(
    save: Callable[..., Any],
    llama_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved = save(llama_config())
    original = Port.map_state

    def wrong(self: Port, state: Any) -> Any:
        from torch2mlx.planning.expressions import Concat

        mapping = original(self, state)
        name = "model.layers.0.self_attn.q_proj.weight"
        expr = mapping.outputs[name]
        halves = [Slice(expr, (range(i, expr.shape[0], 2), *full(expr.shape[1:]))) for i in (0, 1)]
        return replace(mapping, outputs={**mapping.outputs, name: Concat(tuple(halves), 0)})

    monkeypatch.setattr(Port, "map_state", wrong)
    found = run_blocks(saved.config, saved.state, saved.source, memory_limit=1, sample=0)
    assert not any(c.passed for c in found)


def test_a_missing_tensor_is_an_error(
    save: Callable[..., Any], llama_config: Callable[..., Config]
) -> None:
    saved = save(llama_config())
    state = {k: v for k, v in saved.state.items() if "layers.1.mlp.up" not in k}
    with pytest.raises(PlanError, match=r"layers\.1\.mlp\.up_proj"):
        run_blocks(saved.config, state, saved.source, memory_limit=10**9)


def test_first_last_one_of_each_kind_and_a_sample_are_chosen() -> None:
    kinds = ["a"] * 5 + ["b"] + ["a"] * 14
    assert choose_layers(kinds, sample=0) == [0, 5, 19]
    chosen = choose_layers(kinds, sample=3, seed=1)
    assert len(chosen) == 6
    assert chosen == choose_layers(kinds, sample=3, seed=1)
    assert chosen != choose_layers(kinds, sample=3, seed=2)
    assert choose_layers(["a"], sample=3) == [0]
