"""Releases in their authors' layout, cut and named as those of Meta and Mistral are."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from releases import (
    HEADS,
    PARAMS,
    interleaved,
    meta_release,
    mistral_release,
    mixtral_release,
    small_sentencepiece,
)
from safetensors.torch import load_file

import torch2mlx
from torch2mlx.errors import SourceError, UnsupportedError
from torch2mlx.sources import open_checkpoint
from torch2mlx.verification.reference import read_state


@pytest.fixture
def llama(checkpoint):
    return load_file(checkpoint("llama", "bfloat16") / "model.safetensors")


def same_state(folder, expected):
    opened = open_checkpoint(folder)
    found = read_state(opened.state, opened.source)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], t.float()) for n, t in expected.items())
    return opened


@pytest.mark.parametrize(("ranks", "axis"), [(1, 1), (2, 0), (8, 1)])
def test_ranks_are_joined_and_heads_ordered(llama, tmp_path, ranks, axis):
    opened = same_state(meta_release(tmp_path / "llama", llama, ranks, axis), llama)
    assert opened.kind == "original"
    config = opened.config
    assert config["model_type"] == "llama"
    assert (config["intermediate_size"], config["vocab_size"]) == (256, 288)
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 50_000.0}


def test_interleaved_rotation_of_the_original_is_that_of_transformers(llama, tmp_path):
    # Meta's reference: view_as_complex of neighbouring rows, times exp(i * position * frequency).
    weight = llama["model.layers.0.self_attn.q_proj.weight"].float()
    theirs = interleaved(weight, HEADS)
    x = torch.randn(2, 128, generator=torch.Generator().manual_seed(0))
    frequencies = 50_000.0 ** -(torch.arange(0, 32, 2) / 32)
    turn = torch.polar(torch.ones(2, 16), torch.tensor([[3.0], [11.0]]) * frequencies)
    pairs = (x @ theirs.T).reshape(2, HEADS, 16, 2)
    rotated = torch.view_as_real(torch.view_as_complex(pairs) * turn[:, None]).flatten(2)
    from transformers.models.llama.modeling_llama import rotate_half

    angles = torch.tensor([[3.0], [11.0]]) * torch.cat([frequencies, frequencies])
    q = (x @ weight.T).reshape(2, HEADS, 32)
    expected = q * angles.cos()[:, None] + rotate_half(q) * angles.sin()[:, None]
    scores = torch.einsum("hd,hd->h", *rotated), torch.einsum("hd,hd->h", *expected)
    torch.testing.assert_close(*scores, rtol=1e-5, atol=1e-5)


def test_mixtral_of_fused_experts(checkpoint, tmp_path):
    state = load_file(checkpoint("mixtral", "bfloat16") / "model.safetensors")
    mixtral_release(tmp_path / "mixtral", state)
    opened = same_state(tmp_path / "mixtral", state)
    assert opened.config["num_local_experts"] == 4
    assert opened.config["model_type"] == "mixtral"


@pytest.mark.slow
def test_a_mistral_release_converts_with_its_tokenizer(llama, tmp_path):
    small_sentencepiece(tmp_path / "tokenizer.model.v3")
    mistral_release(tmp_path / "mistral", llama)
    shutil.copy(tmp_path / "tokenizer.model.v3", tmp_path / "mistral")
    same_state(tmp_path / "mistral", llama)
    result = torch2mlx.convert(tmp_path / "mistral", tmp_path / "out", quantize=True)
    assert result.manifest.verification["audit"]["passed"]
    from mlx_lm import load

    _, tokenizer = load(str(tmp_path / "out"))
    assert tokenizer.encode("the stars go out")[0] == 1
    assert torch2mlx.verify(tmp_path / "mistral", tmp_path / "out").passed


def test_what_is_missing_or_mixed_is_named(llama, tmp_path):
    folder = meta_release(tmp_path / "llama", llama, 4)
    (folder / "consolidated.01.pth").rename(tmp_path / "away")
    with pytest.raises(SourceError, match="files of ranks 1 are missing; there are 3"):
        open_checkpoint(folder)
    (tmp_path / "away").rename(folder / "consolidated.01.pth")
    (folder / "consolidated.03.pth").rename(tmp_path / "away")
    with pytest.raises(
        SourceError, match=r"3 files, but layers\.0\.attention\.wo\.weight is cut into 4"
    ):
        open_checkpoint(folder)
    part = torch.load(tmp_path / "away")
    del part["layers.1.feed_forward.w2.weight"]
    torch.save(part, folder / "consolidated.03.pth")
    with pytest.raises(SourceError, match=r"rank 3 lacks layers\.1\.feed_forward\.w2\.weight"):
        open_checkpoint(folder)
    (folder / "params.json").write_text(json.dumps({**PARAMS, "yarn": {"factor": 4}}))
    with pytest.raises(UnsupportedError, match="yarn = "):
        open_checkpoint(folder)
    (folder / "params.json").write_text(json.dumps({**PARAMS, "rope_type": "linear"}))
    with pytest.raises(UnsupportedError, match="rope_type = linear"):
        open_checkpoint(folder)
