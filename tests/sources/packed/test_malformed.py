"""Damaged variants of every packed layout end in one message that names the weight."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from packed_checkpoints import repacked, require_library
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_packed import FORMATS

from torch2mlx.errors import SourceError, UnsupportedError
from torch2mlx.sources import open_checkpoint
from torch2mlx.verification.reference import read_state

Q = "model.layers.0.self_attn.q_proj"
# What belongs to the scales of a weight, by the start of a layout's name.
SCALES = {
    "gptq": "scales",
    "awq": "scales",
    "pack": "weight_scale",
    "int": "weight_scale",
    "float": "weight_scale",
    "nvfp4": "weight_scale",
    "mxfp": "weight_scale",
    "naive": "weight_scale",
    "modelopt": "weight_scale",
    "bitsandbytes int8": "SCB",
    "bitsandbytes": "weight.absmax",
    "fbgemm": "weight_scale",
    "fp8": "weight_scale_inv",
    "hqq": "scale",
    "torchao": "_weight_scale",
}


def opened_and_read(folder: Any) -> None:
    opened = open_checkpoint(folder)
    read_state(opened.state, opened.source)


# One of each method; the others are as they.
QUICK = (
    "gptq 4 bits", "awq", "pack-quantized", "int-quantized", "float-quantized channel",
    "nvfp4-pack-quantized", "mxfp4-pack-quantized", "modelopt nvfp4", "modelopt fp8", "fbgemm_fp8",
    "bitsandbytes nf4", "bitsandbytes int8", "fp8 blocks", "hqq 4 bits", "torchao int8",
)  # fmt: skip
PARAMETERS = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FORMATS
]


@pytest.mark.parametrize("name", PARAMETERS)
def test_scales_that_are_missing_or_of_another_shape(
    name: str, checkpoint: Any, tmp_path: Any
) -> None:
    require_library(name)
    folder = tmp_path / "packed"
    repacked(checkpoint("llama", "float32"), folder, *FORMATS[name][0]())
    file = folder / "model.safetensors"
    whole = load_file(file)
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    leaf = next(leaf for start, leaf in SCALES.items() if name.startswith(start))
    scales = whole.pop(f"{Q}.{leaf}")

    def refused() -> str:
        save_file(whole, file, metadata=header)
        with pytest.raises(SourceError) as caught:
            opened_and_read(folder)
        return str(caught.value)

    assert Q in refused()
    longer = torch.cat([scales.reshape(-1), scales.reshape(-1)[:1]])  # one number too many
    whole[f"{Q}.{leaf}"] = longer
    assert Q in refused()


def torchao_file(folder: Any, described: dict[str, Any], tensors: dict[str, Any]) -> Any:
    """A checkpoint of one weight, as torchao's safetensors support names its parts."""
    folder.mkdir(exist_ok=True)
    settings = {"model_type": "llama", "quantization_config": {"quant_method": "torchao"}}
    (folder / "config.json").write_text(json.dumps(settings))
    header = {"format": "pt", f"{Q}.weight": json.dumps(described)}
    parts = {f"{Q}._weight_{part}": tensor for part, tensor in tensors.items()}
    save_file(parts, folder / "model.safetensors", metadata=header)
    return folder


def test_torchao_that_is_not_known_or_damaged(tmp_path: Any) -> None:
    described = {
        "_type": "IntxUnpackedToInt8Tensor",
        "_data": {"block_size": [1, 32], "target_dtype": {"_type": "torch.dtype", "_data": "int4"}},
        "_tensor_data_names": ["qdata", "scale"],
    }
    tensors = {"qdata": torch.randint(-8, 8, (4, 64)).char(), "scale": torch.ones(4, 2)}
    opened = open_checkpoint(torchao_file(tmp_path / "x", described, tensors))
    values = read_state(opened.state, opened.source)[f"{Q}.weight"]
    assert torch.equal(values, tensors["qdata"].float())
    for change, error, words in (
        ({"_type": "Int4Tensor"}, UnsupportedError, "Int4Tensor is not known.*with torchao"),
        ({"_tensor_data_names": ["qdata"]}, SourceError, r"q_proj\.weight: scales not known"),
        (
            {"_tensor_data_names": ["qdata", "scale", "act_pre_scale"]},
            SourceError,
            "act_pre_scale missing",
        ),
        ({"_data": {"block_size": [2, 32]}}, SourceError, "expected groups along rows"),
        ({"_data": {}}, SourceError, "holds a value of a kind|block_size"),
    ):
        folder = torchao_file(tmp_path / "x", {**described, **change}, tensors)
        with pytest.raises(error, match=words):
            open_checkpoint(folder)
    tensors["qdata"][1, 5] = 8
    damaged = open_checkpoint(torchao_file(tmp_path / "x", described, tensors))
    with pytest.raises(SourceError, match="codes from -8 to 8 are none of int4"):
        read_state(damaged.state, damaged.source)


def test_hqq_that_does_not_fit(tmp_path: Any) -> None:
    text = {"packing": "4bit_u8", "compute_dtype": "torch.float32"}
    tensors = {
        "W_q": torch.randint(0, 256, (4, 32), dtype=torch.uint8),
        "scale": torch.ones(8, 1), "zero": torch.full((8, 1), 7.0), "shape": torch.tensor([4, 64]),
        "nbits": torch.tensor(4), "group_size": torch.tensor(32), "axis": torch.tensor(1),
        **{n: torch.tensor(list(map(ord, t)), dtype=torch.uint8) for n, t in text.items()},
    }  # fmt: skip

    def opened(**changes: Any) -> Any:
        settings = {"model_type": "llama", "quantization_config": {"quant_method": "hqq"}}
        (tmp_path / "config.json").write_text(json.dumps(settings))
        parts = {n: t for n, t in {**tensors, **changes}.items() if t is not None}
        save_file({f"{Q}.{n}": t for n, t in parts.items()}, tmp_path / "model.safetensors")
        return open_checkpoint(tmp_path)

    found = opened()
    values = read_state(found.state, found.source)[f"{Q}.weight"]
    codes = tensors["W_q"]
    expected = torch.cat([codes >> 4, codes & 15]).reshape(4, 64).float() - 7
    assert torch.equal(values, expected)
    assert set(found.packed) == {f"{Q}.weight"}
    for changes, words in (
        ({"zero": None}, "zero missing beside W_q"),
        ({"group_size": torch.tensor(64)}, r"expected U8 \[2, 64\]"),
        ({"nbits": torch.tensor(3)}, "3 bits packed as '4bit_u8'"),
        ({"quant_zero": torch.tensor(1)}, "quantized themselves"),
        ({"shape": torch.tensor([4, 63])}, r"shape \[4, 63\] in groups of 32"),
        ({"scale": torch.ones(7, 1)}, r"scale \[7, 1\] and zero \[8, 1\] for 8 groups"),
    ):
        with pytest.raises(SourceError, match=words):
            opened(**changes)
