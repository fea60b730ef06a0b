"""Damaged variants of every packed layout end in one message that names the weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from packed_checkpoints import repacked
from safetensors.torch import load_file, save_file
from test_packed import FORMATS

from torch2mlx.errors import SourceError
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
    "mxfp4": "weight_scale",
    "modelopt": "weight_scale",
    "bitsandbytes int8": "SCB",
    "bitsandbytes": "weight.absmax",
    "fbgemm": "weight_scale",
    "fp8": "weight_scale_inv",
}


def opened_and_read(folder: Any) -> None:
    opened = open_checkpoint(folder)
    read_state(opened.state, opened.source)


# One of each method; the others are as they.
QUICK = (
    "gptq 4 bits", "awq", "pack-quantized", "int-quantized", "float-quantized channel",
    "nvfp4-pack-quantized", "mxfp4-pack-quantized", "modelopt nvfp4", "modelopt fp8", "fbgemm_fp8",
    "bitsandbytes nf4", "bitsandbytes int8", "fp8 blocks",
)  # fmt: skip
PARAMETERS = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FORMATS
]


@pytest.mark.parametrize("name", PARAMETERS)
def test_scales_that_are_missing_or_of_another_shape(
    name: str, checkpoint: Any, tmp_path: Any
) -> None:
    if name.startswith("bitsandbytes"):
        pytest.importorskip("bitsandbytes")
    folder = tmp_path / "packed"
    repacked(checkpoint("llama", "float32"), folder, *FORMATS[name][0]())
    file = folder / "model.safetensors"
    whole = load_file(file)
    leaf = next(leaf for start, leaf in SCALES.items() if name.startswith(start))
    scales = whole.pop(f"{Q}.{leaf}")

    def refused() -> str:
        save_file(whole, file, metadata={"format": "pt"})
        with pytest.raises(SourceError) as caught:
            opened_and_read(folder)
        return str(caught.value)

    assert Q in refused()
    longer = torch.cat([scales.reshape(-1), scales.reshape(-1)[:1]])  # one number too many
    whole[f"{Q}.{leaf}"] = longer
    assert Q in refused()
