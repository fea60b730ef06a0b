from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from torch2mlx.dtypes import DTYPES, to_torch
from torch2mlx.errors import PlanError, UnsupportedError
from torch2mlx.verification.reference import (
    allow_code,
    build_reference,
    build_skeleton,
    decoder_layers,
    read_state,
    reference_config,
    run_reference,
    swap_gelu,
)

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own_llama_for_tests"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output
"""


def test_code_of_the_checkpoint_runs_only_when_allowed(
    tmp_path: Path,
    llama_config: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    (tmp_path / "modeling_own.py").write_text(CODE)
    config = llama_config(
        model_type="own_llama_for_tests",
        auto_map={
            "AutoConfig": "modeling_own.OwnConfig",
            "AutoModelForCausalLM": "modeling_own.OwnModel",
        },
    )
    with pytest.raises(UnsupportedError, match="--trust-remote-code"):
        reference_config(config)
    allow_code(config, tmp_path)
    own = build_reference(config)
    plain = build_reference(llama_config())
    plain.load_state_dict(own.state_dict())
    ids = np.arange(8)
    np.testing.assert_allclose(run_reference(own, ids).logits, run_reference(plain, ids).logits * 2)


def test_code_that_fails_is_reported(tmp_path: Path) -> None:
    config = {"model_type": "own_broken", "auto_map": {"AutoConfig": "absent.Config"}}
    with pytest.raises(UnsupportedError, match="own_broken"):
        allow_code(config, tmp_path)


def test_a_checkpoint_in_hub_naming_gives_the_model_it_was_saved_from(
    save: Callable[..., Any], llama_config: Callable[..., dict[str, Any]]
) -> None:
    moe = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    saved = save({**llama_config(num_hidden_layers=2), **moe})
    assert any("experts.3.w1" in name for name in saved.state)  # one tensor an expert
    again = build_reference(saved.config, read_state(saved.state, saved.source))
    ids = np.arange(10)
    expected = run_reference(saved.model, ids)
    found = run_reference(again, ids)
    assert (found.logits == expected.logits).all()
    assert found.logits.shape == (10, 600)
    assert [layer.shape for layer in found.layers if layer is not None] == [(10, 64)] * 2
    with torch.no_grad():
        hidden = again(input_ids=torch.arange(10)[None], output_hidden_states=True).hidden_states
    assert (hidden[1][0].numpy() == found.layers[0]).all()


def test_missing_weights_are_an_error_not_random_ones(
    save: Callable[..., Any], llama_config: Callable[..., dict[str, Any]]
) -> None:
    saved = save(llama_config())
    state = read_state(saved.state, saved.source)
    del state["model.layers.3.mlp.up_proj.weight"]
    with pytest.raises(PlanError, match=r"model\.layers\.3\.mlp\.up_proj\.weight"):
        build_reference(saved.config, state)


def test_a_tensor_of_another_shape_is_an_error_that_names_it(
    save: Callable[..., Any], llama_config: Callable[..., dict[str, Any]]
) -> None:
    saved = save(llama_config())
    state = read_state(saved.state, saved.source)
    state["model.layers.1.mlp.up_proj.weight"] = torch.zeros(96, 64)
    with pytest.raises(PlanError, match=r"layers\.1\.mlp\.up_proj\.weight.*96.*128"):
        build_reference(saved.config, state)


@pytest.fixture
def multimodal(llama_config: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    text = {**llama_config(model_type="mistral", num_hidden_layers=2), "head_dim": 16}
    tower = {
        "model_type": "pixtral", "hidden_size": 32, "intermediate_size": 48,
        "num_attention_heads": 2, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    return {"model_type": "mistral3", "text_config": text, "vision_config": tower,
            "image_token_index": 599, "tie_word_embeddings": False}  # fmt: skip


@pytest.mark.parametrize("kept", ["a layer", "the embedding", "the head"])
def test_image_towers_may_be_missing_but_nothing_of_the_text_path(
    save: Callable[..., Any], multimodal: dict[str, Any], kept: str
) -> None:
    saved = save(multimodal)
    state = read_state(saved.state, saved.source)
    text = {n: v for n, v in state.items() if "vision" not in n and "projector" not in n}
    assert len(text) < len(state)
    tokens = np.arange(10)
    expected = run_reference(build_reference(saved.config, state), tokens)
    found = run_reference(build_reference(saved.config, text), tokens)
    assert (found.logits == expected.logits).all()
    part = {"a layer": "layers.1.mlp.up_proj", "the embedding": "embed_tokens", "the head": "head"}
    del text[next(n for n in text if f"{part[kept]}.weight" in n)]
    with pytest.raises(PlanError, match=part[kept].replace(".", r"\.")):
        build_reference(saved.config, text)


def test_a_refused_config_is_an_error(llama_config: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(UnsupportedError, match="no_such_function"):
        build_reference(llama_config(hidden_act="no_such_function"))


def test_skeletons_take_no_memory(hub: dict[str, Any]) -> None:
    model = build_skeleton(hub["llama3"])
    assert sum(p.numel() for p in model.parameters()) > 8e9
    assert {p.device.type for p in model.parameters()} == {"meta"}
    name, layers = decoder_layers(model)
    assert (name, len(layers)) == ("model.layers", 32)


@pytest.mark.parametrize("name", ["F32", "BF16", "F16", "F8_E4M3", "F8_E5M2", "I64", "BOOL"])
def test_bit_views_become_torch_tensors_of_the_same_bits(name: str) -> None:
    dtype = DTYPES[name]
    raw = np.arange(64, dtype=np.uint8) % 2 if name == "BOOL" else np.arange(64, dtype=np.uint8)
    tensor = to_torch(raw.view(dtype.numpy), dtype)
    assert str(tensor.dtype) == f"torch.{dtype.torch_name}"
    assert (tensor.view(torch.uint8).numpy() == raw).all()


def test_gelu_changes_its_form_and_back(hub: dict[str, Any]) -> None:
    small = {**hub["gpt2"], "n_layer": 1, "n_embd": 48, "vocab_size": 50}
    small.update(bos_token_id=1, eos_token_id=2)
    model = build_reference(small)
    ids = np.arange(20)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4)
    tanh = run_reference(model, ids).logits
    assert swap_gelu(model)
    erf = run_reference(model, ids).logits
    assert 0 < np.abs(erf - tanh).max() < 0.05 * np.abs(tanh).max()
    assert swap_gelu(model)
    np.testing.assert_allclose(run_reference(model, ids).logits, tanh, rtol=1e-5, atol=1e-6)
    assert not swap_gelu(build_reference({**hub["mamba2"], "num_hidden_layers": 1}))
