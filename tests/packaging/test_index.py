from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.convert import mixed_quant_predicate_builder
from mlx_lm.models import llama, mamba
from mlx_lm.utils import (
    compute_bits_per_weight,
    get_total_parameters,
    quantize_model,
    save_model,
)

from torch2mlx.errors import SourceError
from torch2mlx.packaging.index import INDEX, leaf_paths, measure_weights, write_index
from torch2mlx.planning.shards import shard_name


def _llama() -> nn.Module:
    return llama.Model(
        llama.ModelArgs(
            model_type="llama",
            hidden_size=64,
            num_hidden_layers=2,
            intermediate_size=128,
            num_attention_heads=4,
            rms_norm_eps=1e-5,
            vocab_size=128,
            attention_bias=True,
            tie_word_embeddings=False,
        )
    )


def _mamba() -> nn.Module:
    """Has parameters beside submodules (A_log, D), which mlx-lm does not count."""
    return mamba.Model(
        mamba.ModelArgs(
            model_type="mamba",
            vocab_size=128,
            hidden_size=64,
            intermediate_size=128,
            state_size=16,
            num_hidden_layers=2,
            conv_kernel=4,
            use_bias=True,
            use_conv_bias=True,
            time_step_rank=4,
        )
    )


@pytest.mark.parametrize("make", [_llama, _mamba])
@pytest.mark.parametrize(
    ("bits", "group", "mode"),
    [(None, 0, ""), (4, 64, "affine"), (3, 32, "affine"), (8, 32, "mxfp8")],
)
def test_equals_the_index_of_mlx_lm(
    tmp_path: Path, make: object, bits: int | None, group: int, mode: str
) -> None:
    model: nn.Module = make()  # type: ignore[operator]
    quantized = {}
    if bits:
        nn.quantize(
            model,
            group,
            bits,
            mode=mode,
            class_predicate=lambda p, m: (
                hasattr(m, "to_quantized") and m.weight.shape[-1] % group == 0
            ),
        )
        quantized = {p: bits for p, m in model.named_modules() if hasattr(m, "bits")}
        assert quantized
    save_model(tmp_path, model)
    expected = json.loads((tmp_path / INDEX).read_text())
    (tmp_path / INDEX).unlink()

    summary = write_index(tmp_path, quantized, leaf_paths(model))

    assert json.loads((tmp_path / INDEX).read_text()) == expected
    assert list(json.loads((tmp_path / INDEX).read_text())["weight_map"]) == sorted(
        expected["weight_map"]
    )
    assert summary.total_parameters == get_total_parameters(model)
    assert summary.bits_per_weight == pytest.approx(compute_bits_per_weight(model))
    assert summary.files == ("model.safetensors",)


def test_any_folder_is_measured_by_its_config(tmp_path: Path) -> None:
    model = _llama()
    predicate = mixed_quant_predicate_builder("mixed_3_6", model, 64)
    model, config = quantize_model(model, {}, group_size=64, bits=None, quant_predicate=predicate)
    save_model(tmp_path, model)
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = measure_weights(tmp_path)
    assert found.bits_per_weight == pytest.approx(compute_bits_per_weight(model), rel=1e-12)
    assert found.total_parameters == get_total_parameters(model)
    (tmp_path / "config.json").write_text(json.dumps({"quantization": {"group_size": 64}}))
    with pytest.raises(SourceError, match=r"config\.json: names no bits"):
        measure_weights(tmp_path)


def test_without_leaves_every_parameter_counts(tmp_path: Path) -> None:
    model = _mamba()
    save_model(tmp_path, model)
    count = sum(v.size for _, v in tree_flatten(model.parameters()))
    assert write_index(tmp_path, {}).total_parameters == count > get_total_parameters(model)


def test_shards_are_mapped_to_their_files(tmp_path: Path) -> None:
    mx.save_safetensors(str(tmp_path / shard_name(1, 2)), {"b.weight": mx.zeros((2, 3))})
    mx.save_safetensors(str(tmp_path / shard_name(2, 2)), {"a.weight": mx.zeros((4,), mx.bfloat16)})
    summary = write_index(tmp_path, {})
    assert (summary.total_size, summary.total_parameters) == (2 * 3 * 4 + 4 * 2, 10)
    index = json.loads((tmp_path / INDEX).read_text())
    assert list(index["weight_map"].items()) == [
        ("a.weight", "model-00002-of-00002.safetensors"),
        ("b.weight", "model-00001-of-00002.safetensors"),
    ]


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    for number in (1, 2):
        mx.save_safetensors(
            str(tmp_path / shard_name(number, 2)), {"w": mx.array(np.zeros(2, np.float32))}
        )
    with pytest.raises(SourceError, match="'w' is in model-00001-of-00002"):
        write_index(tmp_path, {})


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no model\*\.safetensors"):
        write_index(tmp_path, {})


def test_names() -> None:
    assert shard_name(1, 1) == "model.safetensors"
    assert shard_name(3, 12) == "model-00003-of-00012.safetensors"
