"""A quantized MLX folder as a source."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest

from torch2mlx.dtypes import from_mx
from torch2mlx.errors import SourceError
from torch2mlx.planning.regions import full
from torch2mlx.sources import open_checkpoint


def write(folder, arrays, quantization):
    folder.mkdir()
    config = {"model_type": "llama", "torch_dtype": "bfloat16", "quantization": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), arrays)
    return folder


def quantize(weight, **scheme):
    parts = mx.quantize(weight, **scheme, stream=mx.cpu)
    return dict(zip(("m.weight", "m.scales", "m.biases"), parts, strict=False))


WEIGHT = mx.random.normal((3, 24, 128), key=mx.random.key(5)).astype(mx.bfloat16)


@pytest.mark.parametrize(
    "scheme",
    [
        {"bits": 4, "group_size": 64, "mode": "affine"},
        {"bits": 3, "group_size": 32, "mode": "affine"},
        {"bits": 4, "group_size": 32, "mode": "mxfp4"},
        {"bits": 8, "group_size": 32, "mode": "mxfp8"},
    ],
    ids=lambda s: f"{s['mode']}-{s['bits']}",
)
def test_values_are_what_mlx_dequantizes(tmp_path, scheme):
    parts = quantize(WEIGHT, **scheme)
    checkpoint = open_checkpoint(write(tmp_path / "q", {**parts, "n": WEIGHT[0, 0]}, scheme))
    assert checkpoint.kind == "mlx"
    assert set(checkpoint.state) == {"m.weight", "n"}
    assert "quantization" not in checkpoint.config
    expr = checkpoint.state["m.weight"]
    expected = mx.dequantize(
        parts["m.weight"], parts["m.scales"], parts.get("m.biases"), **scheme, dtype=mx.bfloat16
    )
    assert expr.shape == WEIGHT.shape
    found = expr.read(full(expr.shape), checkpoint.source)
    assert np.array_equal(found, from_mx(expected))
    part = (range(1, 3), range(5, 20), range(7, 99))
    assert np.array_equal(expr.read(part, checkpoint.source), from_mx(expected)[1:3, 5:20, 7:99])


def test_a_modules_own_format_counts(tmp_path):
    own = {"bits": 8, "group_size": 64, "mode": "affine"}
    scheme = {"bits": 4, "group_size": 64, "mode": "affine", "m": own}
    checkpoint = open_checkpoint(write(tmp_path / "q", quantize(WEIGHT, **own), scheme))
    assert checkpoint.state["m.weight"].shape == WEIGHT.shape


def test_a_format_that_the_tensors_do_not_have_is_refused(tmp_path):
    folder = write(
        tmp_path / "q",
        quantize(WEIGHT, bits=4, group_size=64),
        {"bits": 8, "group_size": 64, "mode": "affine"},
    )
    with pytest.raises(SourceError, match=r"m\.weight.*is not 8 bits in groups of 64"):
        open_checkpoint(folder)


@pytest.mark.parametrize("changes", [{"mode": "foo"}, {"mode": "nvfp4"}, {"group_size": 0}])
def test_a_format_that_mlx_lacks_is_refused(tmp_path, changes):
    scheme = {"bits": 4, "group_size": 32, "mode": "mxfp4"}
    folder = write(tmp_path / "q", quantize(WEIGHT, **scheme), {**scheme, **changes})
    with pytest.raises(SourceError, match=r"m\.weight: U32 .* is not 4 bits in groups of"):
        open_checkpoint(folder)


def test_a_type_that_is_none_is_passed_over(tmp_path):
    scheme = {"bits": 4, "group_size": 32, "mode": "mxfp4"}
    folder = write(tmp_path / "q", quantize(WEIGHT, **scheme), scheme)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "torch_dtype": "int8"}))
    assert open_checkpoint(folder).state["m.weight"].dtype.name == "BF16"
