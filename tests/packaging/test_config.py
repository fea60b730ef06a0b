from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.utils import load_config, load_model, save_model

from torch2mlx.packaging.config import (
    output_config,
    with_stop_ids,
    write_config,
    write_generation_config,
)
from torch2mlx.quantization.recipe import Assignment
from torch2mlx.quantization.scheme import Scheme

BASE = Scheme(4, 64)


def test_mixed_schemes_load_in_mlx_lm(tmp_path: Path, model: nn.Module) -> None:
    """Default, other bits, other mode, and modules that stay as they are."""
    config = {**model.args.__dict__, "model_type": "llama"}
    schemes: dict[str, Scheme | None] = {
        "lm_head": Scheme(8, 32),
        "model.embed_tokens": None,
        "model.layers.0.mlp.down_proj": Scheme.resolve(None, None, "mxfp4"),
        "model.layers.0.mlp.gate_proj": None,
        "model.layers.1.self_attn.q_proj": Scheme(6, 64),
        "model.layers.1.self_attn.k_proj": BASE,
    }

    def predicate(path: str, module: nn.Module) -> bool | dict[str, Any]:
        scheme = schemes.get(path, BASE)
        if not hasattr(module, "to_quantized") or scheme is None:
            return False
        return scheme.to_config()

    nn.quantize(model, class_predicate=predicate)
    save_model(tmp_path, model)
    entry = Assignment(BASE, schemes, {}).to_config()
    write_config(tmp_path, output_config(config, entry))

    loaded, _ = load_model(tmp_path)

    tokens = mx.array([[1, 2, 3, 400]])
    assert mx.array_equal(loaded(tokens), model(tokens)).item()
    assert loaded.lm_head.bits == 8
    assert loaded.model.layers[0].mlp.down_proj.mode == "mxfp4"
    assert type(loaded.model.embed_tokens) is nn.Embedding
    assert type(loaded.model.layers[0].mlp.gate_proj) is nn.Linear
    assert loaded.model.layers[1].mlp.gate_proj.bits == 4
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["quantization"] == saved["quantization_config"]
    assert set(saved["quantization"]) == {
        "group_size",
        "bits",
        "mode",
        "lm_head",
        "model.layers.0.mlp.down_proj",
        "model.layers.1.self_attn.q_proj",
    }


@pytest.mark.parametrize(
    "packing",
    [
        {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 64}},
        {"text_config": {"quantization_config": {"quant_method": "awq", "bits": 4}}},
        {"quantization": {"group_size": 32, "bits": 8}},
        {"compression_config": {"format": "pack-quantized"}},
    ],
)
def test_no_trace_of_the_sources_packing(
    tmp_path: Path, model: nn.Module, packing: dict[str, Any]
) -> None:
    """An unquantized output whose config still says "gptq" would be unpacked a second time."""
    config = {**model.args.__dict__, **packing}
    write_config(tmp_path, output_config(config))
    save_model(tmp_path, model)
    loaded, read = load_model(tmp_path)
    assert type(loaded.lm_head) is nn.Linear
    assert "quantization" not in read
    assert "quantization" not in json.dumps(read)
    assert "compression" not in json.dumps(read)
    assert config == {**model.args.__dict__, **packing}  # not changed


def test_what_goes_and_what_stays() -> None:
    config = {
        "model_type": "x",
        "_name_or_path": "/home/somebody/model",
        "model_file": "/tmp/evil.py",
        "vision_config": {"a": 1},
        "zeta": [1, 2],
        "alpha": {"b": None},
    }
    assert output_config(config) == {"alpha": {"b": None}, "model_type": "x", "zeta": [1, 2]}
    assert list(output_config(config)) == ["alpha", "model_type", "zeta"]
    assert output_config(config, vision=True)["vision_config"] == {"a": 1}


def test_the_dtype_is_that_of_the_output() -> None:
    config = {"dtype": "bfloat16", "model_type": "x"}
    assert output_config(config, dtype="float16") == {"model_type": "x", "torch_dtype": "float16"}
    assert output_config(config) == config


def test_infinities_stay_valid_json_and_arrive_in_mlx_lm(tmp_path: Path) -> None:
    config = {
        "limits": [0.0, math.inf],
        "nested": {"low": -math.inf, "none": math.nan},
        "tagged": {"__float__": "Infinity"},
    }
    write_config(tmp_path, output_config(config))
    text = (tmp_path / "config.json").read_text()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    json.loads(text, parse_constant=refuse)
    read = load_config(tmp_path)
    assert read["limits"] == [0.0, math.inf]
    assert read["nested"]["low"] == -math.inf
    assert math.isnan(read["nested"]["none"])
    assert read["tagged"] == math.inf


@pytest.mark.parametrize(
    ("generation", "rewritten"),
    [
        ({}, False),
        ({"temperature": 0.6}, False),
        ({"eos_token_id": 0}, False),
        ({"eos_token_id": [2, 7, 0]}, False),
        ({"eos_token_id": 7, "temperature": 0.6, "do_sample": True}, True),
        ({"eos_token_id": [7, 9]}, True),
    ],
)
def test_mlx_lm_reads_every_stop_id(
    tmp_path: Path, generation: dict[str, Any], rewritten: bool
) -> None:
    ids = [7, 9, 2, 0] if generation.get("eos_token_id") == [7, 9] else [7, 2, 0]
    original = json.dumps(generation)
    if generation:
        (tmp_path / "generation_config.json").write_text(original)
    write_config(tmp_path, output_config({"eos_token_id": 2}, eos_token_id=ids))
    assert write_generation_config(tmp_path, generation, ids) is rewritten
    assert set(load_config(tmp_path)["eos_token_id"]) == set(ids)
    if generation:
        text = (tmp_path / "generation_config.json").read_text()
        assert (text == original) is not rewritten
        assert json.loads(text) == {**generation, **({"eos_token_id": ids} if rewritten else {})}
    else:
        assert not (tmp_path / "generation_config.json").exists()


def test_one_stop_id_stays_a_number() -> None:
    assert with_stop_ids({"a": 1}, [5]) == {"a": 1, "eos_token_id": 5}
    assert with_stop_ids({}, [5, 6]) == {"eos_token_id": [5, 6]}
    assert "eos_token_id" not in output_config({"model_type": "x"})
