"""Folders of transformers that no port is for: compiled as their class, compared with PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import torch2mlx
from torch2mlx.compiler.parity.running import import_model
from torch2mlx.compiler.pretrained.examples import entry_points_of
from torch2mlx.errors import OptionError, SourceError

_TEXT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "vocab_size": 99, "max_position_embeddings": 40,
}  # fmt: skip
_PICTURE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
}  # fmt: skip


def saved(folder: Path, kind: str, **settings: Any) -> Any:
    """A model with random weights, in float32, as save_pretrained writes it."""
    torch.manual_seed(3)
    found: Any = getattr(transformers, kind)
    model = found(found.config_class(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return model


def distance(folder: Path, model: Any, name: str, **inputs: torch.Tensor) -> float:
    """Relative L2 difference of an output of the MLX folder from PyTorch's."""
    with torch.no_grad():
        want = getattr(model(**inputs), name).numpy()
    loaded = import_model(folder).load(str(folder))
    with mx.stream(mx.cpu):
        found = loaded(**{key: mx.array(value.numpy()) for key, value in inputs.items()})
        got = np.array(found[name])
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def test_text_of_any_size_with_padding(tmp_path: Path) -> None:
    model = saved(tmp_path / "bert", "BertModel", **_TEXT)
    (tmp_path / "bert/vocab.txt").write_text("a\nb\n")
    result = torch2mlx.convert(tmp_path / "bert", tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    shapes = {one["name"]: one["shape"] for one in config["inputs"]}
    any_size = ["batch", "length"]
    assert shapes == {
        "input_ids": any_size, "attention_mask": any_size, "token_type_ids": any_size,
    }  # fmt: skip
    ids = torch.randint(0, 99, (3, 11))
    mask = (torch.arange(11) < torch.tensor([[11], [4], [7]])).long()
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": 1 - mask}
    for name in ("last_hidden_state", "pooler_output"):
        assert distance(tmp_path / "out", model, name, **inputs) < 1e-5
    assert (tmp_path / "out/vocab.txt").read_text() == "a\nb\n"
    assert result.destination == tmp_path / "out"
    assert torch2mlx.verify(tmp_path / "bert", tmp_path / "out").passed


@pytest.mark.slow
def test_pictures_of_the_processors_size(tmp_path: Path) -> None:
    model = saved(
        tmp_path / "resnet", "ResNetForImageClassification",
        hidden_sizes=[8, 16], depths=[1, 1], embedding_size=8, layer_type="basic",
    )  # fmt: skip
    (tmp_path / "resnet/preprocessor_config.json").write_text(
        json.dumps({"size": {"shortest_edge": 96}, "crop_size": {"height": 48, "width": 40}})
    )
    torch2mlx.convert(tmp_path / "resnet", tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["inputs"][0]["shape"] == ["batch", 3, 48, 40]
    pixels = torch.randn(5, 3, 48, 40)
    assert distance(tmp_path / "out", model, "logits", pixel_values=pixels) < 1e-5


@pytest.mark.slow
def test_text_beside_pictures(tmp_path: Path) -> None:
    vision = {**_PICTURE, "image_size": 32, "patch_size": 8}
    model = saved(tmp_path / "clip", "CLIPModel", text_config=_TEXT, vision_config=vision)
    torch2mlx.convert(tmp_path / "clip", tmp_path / "out")
    inputs = {
        "input_ids": torch.randint(0, 99, (4, 9)),
        "attention_mask": torch.ones(4, 9, dtype=torch.long),
        "pixel_values": torch.randn(3, 3, 32, 32),
    }
    assert distance(tmp_path / "out", model, "logits_per_image", **inputs) < 1e-5


@pytest.mark.slow
def test_sound_of_any_length(tmp_path: Path) -> None:
    model = saved(
        tmp_path / "sound", "Wav2Vec2ForCTC", **_PICTURE, vocab_size=32, conv_dim=(16, 16, 16),
        conv_kernel=(10, 3, 3), conv_stride=(5, 2, 2), num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    torch2mlx.convert(tmp_path / "sound", tmp_path / "out")
    wave = torch.randn(1, 7321)
    assert distance(tmp_path / "out", model, "logits", input_values=wave) < 1e-5


@pytest.mark.slow
def test_a_classifier_of_a_family_with_a_port(tmp_path: Path) -> None:
    model = saved(
        tmp_path / "llama", "LlamaForSequenceClassification",
        **_TEXT, num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    torch2mlx.convert(tmp_path / "llama", tmp_path / "out")
    ids = torch.randint(1, 99, (3, 11))
    mask = torch.ones_like(ids)
    inputs = {"input_ids": ids, "attention_mask": mask}
    assert distance(tmp_path / "out", model, "logits", **inputs) < 1e-5


@pytest.mark.slow
def test_an_extent_that_cannot_vary_is_fixed_and_told(tmp_path: Path) -> None:
    found = transformers.FunnelConfig(
        vocab_size=99, block_sizes=[1, 1], num_decoder_layers=1, d_model=32, n_head=4, d_head=8,
        d_inner=48, max_position_embeddings=40,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.FunnelModel(found).eval()
    model.save_pretrained(tmp_path / "funnel")
    torch2mlx.convert(tmp_path / "funnel", tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["inputs"][0]["shape"] == ["batch", 16]
    inputs = {"input_ids": torch.randint(5, 99, (3, 16)), "attention_mask": torch.ones(3, 16)}
    assert distance(tmp_path / "out", model, "last_hidden_state", **inputs) < 1e-4


def test_attempts_have_fewer_and_fewer_free_extents(tmp_path: Path) -> None:
    model = saved(tmp_path / "bert", "BertModel", **_TEXT)
    points = entry_points_of(model, tmp_path / "bert")
    free = [sum(len(axes) for axes in (p.dynamic_shapes or {}).values()) for p in points]
    assert free == [6, 6, 3, 0]
    assert [p.kwargs["input_ids"].shape[0] for p in points] == [2, 2, 1, 1]
    assert points[0].kwargs["attention_mask"].sum(1).tolist() == [16, 11]


def test_settings_that_no_example_can_have(tmp_path: Path) -> None:
    model = saved(
        tmp_path / "vit", "ViTModel", **_PICTURE, image_size=16, patch_size=8, num_channels=1
    )
    file = tmp_path / "vit/preprocessor_config.json"
    for size in ({"height": 10**6, "width": 10**6}, 10**9, [3, "x"], None, -4):
        file.write_text(json.dumps({"size": size}))
        if isinstance(size, dict) or size == 10**9:
            with pytest.raises(OptionError, match="more than an example may have"):
                entry_points_of(model, tmp_path / "vit")
        else:
            shape = entry_points_of(model, tmp_path / "vit")[0].kwargs["pixel_values"].shape
            assert shape == (2, 1, 16, 16)
    short = saved(tmp_path / "bert", "BertModel", **{**_TEXT, "max_position_embeddings": 2})
    mask = entry_points_of(short, tmp_path / "bert")[0].kwargs["attention_mask"]
    assert mask.tolist() == [[1, 1], [1, 1]]


def test_half_precision_is_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(**_TEXT)  # type: ignore[arg-type]
    transformers.BertModel(config).to(torch.bfloat16).save_pretrained(tmp_path / "bert")
    example = {"input_ids": torch.randint(0, 99, (1, 6))}
    torch2mlx.convert(tmp_path / "bert", tmp_path / "out", example_kwargs=example)
    stored = mx.load(str(tmp_path / "out/model.safetensors"))
    assert {v.dtype for v in stored.values() if mx.issubdtype(v.dtype, mx.floating)} == {
        mx.bfloat16
    }


def test_tensors_that_are_missing_or_left_over(tmp_path: Path) -> None:
    saved(tmp_path / "bert", "BertModel", **_TEXT)
    file = tmp_path / "bert/model.safetensors"
    state = load_file(file)
    save_file({**state, "extra.weight": torch.ones(2)}, file, {"format": "pt"})
    example = {"input_ids": torch.randint(0, 99, (1, 6))}
    result = torch2mlx.convert(tmp_path / "bert", tmp_path / "out", example_kwargs=example)
    assert any("no place for extra.weight" in note for note in result.notes)
    with pytest.raises(SourceError, match="an example of yours, which is not kept"):
        torch2mlx.verify(tmp_path / "bert", tmp_path / "out")
    state.pop("embeddings.word_embeddings.weight")
    save_file(state, file, {"format": "pt"})
    with pytest.raises(SourceError, match=r"1 weights of BertModel are missing: embeddings\.word"):
        torch2mlx.convert(tmp_path / "bert", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_no_example_is_known_for_names_its_arguments(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.DecisionTransformerModel(
        transformers.DecisionTransformerConfig(
            state_dim=3, act_dim=2, hidden_size=16, n_layer=1, n_head=2, n_inner=16, max_ep_len=9
        )
    )
    model.save_pretrained(tmp_path / "decisions")
    with pytest.raises(OptionError, match=r"forward takes states, actions, rewards.*--example"):
        torch2mlx.convert(tmp_path / "decisions", tmp_path / "out")
    with pytest.raises(OptionError, match="--weights: a checkpoint has its own"):
        torch2mlx.convert(tmp_path / "decisions", tmp_path / "out", weights=tmp_path)
    with pytest.raises(OptionError, match="random values; give arguments of forward"):
        torch2mlx.convert(tmp_path / "decisions", tmp_path / "out", quantize=True, calibrate=True)


def test_any_class_is_compiled_on_an_example(tmp_path: Path) -> None:
    model = saved(tmp_path / "llama", "LlamaForCausalLM", **_TEXT, num_key_value_heads=2)
    ids = torch.randint(0, 99, (1, 6))
    torch2mlx.convert(tmp_path / "llama", tmp_path / "out", example_kwargs={"input_ids": ids})
    assert distance(tmp_path / "out", model, "logits", input_ids=ids.flip(1)) < 1e-5
