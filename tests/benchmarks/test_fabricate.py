from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fabricate import SHAPES, fabricate, normal_bfloat16


def test_values_are_rounded_as_torch_rounds_them() -> None:
    generator = np.random.default_rng(7)
    values = torch.from_numpy(generator.standard_normal(5000, dtype=np.float32) * np.float32(0.02))
    expected = values.bfloat16().view(torch.uint16).numpy()
    assert np.array_equal(np.frombuffer(normal_bfloat16(5000, seed=7), np.uint16), expected)


@pytest.mark.parametrize("name", ["llama-tiny", "mixtral-tiny"])
def test_the_tensors_are_those_that_transformers_expects(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = fabricate(name, tmp_path / name)
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert SHAPES[name].nbytes == 2 * model.num_parameters()
    assert AutoTokenizer.from_pretrained(folder)("w0 w1").input_ids == [3, 4]


def test_shards_hold_every_tensor_once_and_the_same_bytes_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_file(fabricate("llama-tiny", tmp_path / "whole") / "model.safetensors")
    monkeypatch.setattr("fabricate.SHARD_BYTES", 50_000)
    folder = fabricate("llama-tiny", tmp_path / "sharded")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(folder / file)[name], whole.pop(name))
    assert not whole


def test_sizes_are_what_the_names_say() -> None:
    for name, shape in SHAPES.items():
        if name.split("-")[1].isdecimal():
            assert shape.nbytes / 1e9 == pytest.approx(int(name.split("-")[1]), rel=0.02)
