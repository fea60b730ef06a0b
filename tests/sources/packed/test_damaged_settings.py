"""Settings inside of files, as no library writes them: a problem with a name, no other error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from torch2mlx.planning.expressions import Source
from torch2mlx.sources.packed.hqq import unpack_hqq
from torch2mlx.sources.packed.torchao import unpack_torchao
from torch2mlx.sources.packed.weight import Unpacked
from torch2mlx.sources.safetensors import SafetensorsSource


def unpacked(unpack: Any, path: Path) -> Unpacked:
    source = SafetensorsSource([path])
    state = {name: Source(name, i.dtype, i.shape) for name, i in source.tensors.items()}
    found: Unpacked = unpack(state, {}, source)
    return found


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"_tensor_data_names": 5},
        {"_tensor_data_names": ["qdata", "scale"], "_data": 3},
        {"_tensor_data_names": ["qdata", "scale"], "_data": {"block_size": [1, "x"]}},
        {"_tensor_data_names": [["qdata"], "scale"], "_data": {"block_size": [1, 32]}},
    ],
)
def test_headers_that_torchao_does_not_write(more: dict[str, Any], tmp_path: Path) -> None:
    tensors = {
        "m._weight_qdata": torch.zeros(4, 32, dtype=torch.int8),
        "m._weight_scale": torch.ones(4, 1),
    }
    described = json.dumps({"_type": "Int8Tensor", **more})
    save_file(tensors, tmp_path / "a.safetensors", metadata={"m.weight": described})
    found = unpacked(unpack_torchao, tmp_path / "a.safetensors")
    assert not found.weights
    assert found.problems[0].startswith("m.weight: its header is none that torchao writes")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nbits", torch.zeros(0)),
        ("nbits", torch.tensor([float("nan")])),
        ("group_size", torch.tensor([float("inf")])),
        ("packing", torch.tensor([-5])),
    ],
)
def test_settings_that_hqq_does_not_write(name: str, value: torch.Tensor, tmp_path: Path) -> None:
    tensors = {
        "W_q": torch.zeros(2, 32, dtype=torch.uint8),
        "scale": torch.ones(4, 1),
        "zero": torch.ones(4, 1),
        "shape": torch.tensor([4, 32]),
        "nbits": torch.tensor([4]),
        "group_size": torch.tensor([32]),
        "axis": torch.tensor([1]),
        "packing": torch.tensor(list(b"4bit_u8")),
        "compute_dtype": torch.tensor(list(b"torch.float16")),
    }
    path = tmp_path / "a.safetensors"
    save_file({f"m.{leaf}": tensor for leaf, tensor in tensors.items()}, path)
    assert list(unpacked(unpack_hqq, path).weights) == ["m.weight"]
    save_file({f"m.{leaf}": tensor for leaf, tensor in (tensors | {name: value}).items()}, path)
    found = unpacked(unpack_hqq, path)
    assert not found.weights
    assert found.problems[0].startswith("m: settings that HQQ does not write")
