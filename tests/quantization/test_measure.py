"""Bits per weight of written files against mlx-lm's figure for the models it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.convert import mixed_quant_predicate_builder
from mlx_lm.models import llama, mixtral
from mlx_lm.utils import compute_bits_per_weight, quantize_model

from torch2mlx.dtypes import DTYPES
from torch2mlx.errors import SourceError
from torch2mlx.quantization.measure import measure_bits_per_weight
from torch2mlx.quantization.scheme import Scheme

CONFIG = {
    "model_type": "llama", "hidden_size": 128, "num_hidden_layers": 8, "intermediate_size": 192,
    "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "vocab_size": 40,
    "head_dim": 64, "tie_word_embeddings": False, "attention_bias": True,
}  # fmt: skip


def write(folder: Path, model: nn.Module, config: dict[str, Any], shards: int = 1) -> None:
    weights = tree_flatten(model.parameters())
    for i in range(shards):
        name = (
            "model.safetensors" if shards == 1 else f"model-{i + 1:05}-of-{shards:05}.safetensors"
        )
        mx.save_safetensors(str(folder / name), dict(weights[i::shards]), {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))


def build(port: Any = llama, **changes: Any) -> nn.Module:
    model = port.Model(port.ModelArgs.from_dict({**CONFIG, **changes}))
    model.set_dtype(mx.bfloat16)
    return model


@pytest.mark.parametrize("port", [llama, mixtral])
@pytest.mark.parametrize(
    "scheme",
    [Scheme(4, 64), Scheme(3, 128), Scheme(4, 32, "mxfp4"), Scheme(4, 16, "nvfp4"),
     Scheme(8, 32, "mxfp8")],
    ids=str,
)  # fmt: skip
def test_agrees_with_mlx_lm(tmp_path: Path, port: Any, scheme: Scheme) -> None:
    model = build(port, num_hidden_layers=2, num_local_experts=2)
    model, config = quantize_model(
        model, {}, group_size=scheme.group_size, bits=scheme.bits, mode=scheme.mode
    )
    write(tmp_path, model, config, shards=2)
    report = measure_bits_per_weight(tmp_path)
    assert report.bits_per_weight == pytest.approx(compute_bits_per_weight(model), rel=1e-12)
    assert report.nbytes == sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    assert report.weights == sum(
        array.size
        for _, array in tree_flatten(
            build(port, num_hidden_layers=2, num_local_experts=2).parameters()
        )
    )
    modules = {module.path: module for module in report.modules}
    assert modules["model.norm"].scheme is None
    assert modules["model.norm"].bits_per_weight == 16.0
    head = modules["lm_head"]
    assert head.scheme == scheme
    assert head.bits_per_weight == scheme.bits_per_weight(DTYPES["BF16"])
    # Group size 128 does not divide the width 192 of down_proj.
    down = modules.get("model.layers.0.mlp.down_proj")
    if down is not None:
        assert (down.scheme is None) == (scheme.group_size == 128)


def test_agrees_with_mlx_lm_for_mixed_widths(tmp_path: Path) -> None:
    model = build()
    predicate = mixed_quant_predicate_builder("mixed_3_6", model, 64)
    model, config = quantize_model(model, {}, group_size=64, bits=None, quant_predicate=predicate)
    write(tmp_path, model, config)
    report = measure_bits_per_weight(tmp_path)
    assert report.bits_per_weight == pytest.approx(compute_bits_per_weight(model), rel=1e-12)
    bits = {module.scheme.bits for module in report.modules if module.scheme}
    assert bits == {3, 6}


def test_unquantized_models_take_their_dtype(tmp_path: Path) -> None:
    write(tmp_path, build(), {})
    assert measure_bits_per_weight(tmp_path).bits_per_weight == 16.0


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        (None, "names no format for it"),
        ({"group_size": 64, "bits": 8}, "8-bit affine, groups of 64"),
        ({"group_size": 64, "bits": 7}, "must be 2, 3, 4, 5, 6 or 8, not 7"),
        (
            {"group_size": 32, "bits": 4, "mode": "mxfp4"},
            "'scales' U8 [40, 2]; found: BF16 [40, 2]",
        ),
        ({"group_size": 64, "bits": 4, "lm_head": False}, "'lm_head' is quantized"),
    ],
)
def test_a_config_that_does_not_fit_the_files_is_refused(
    tmp_path: Path, quantization: dict[str, Any] | None, words: str
) -> None:
    model, _ = quantize_model(build(num_hidden_layers=1), {}, group_size=64, bits=4)
    write(tmp_path, model, {"quantization": quantization})
    with pytest.raises(SourceError) as caught:
        measure_bits_per_weight(tmp_path)
    assert words in str(caught.value)
    assert "model.safetensors" in str(caught.value)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no model"):
        measure_bits_per_weight(tmp_path)
