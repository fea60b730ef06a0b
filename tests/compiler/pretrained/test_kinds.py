"""Which configs are compiled as their class, and which hub ids are downloaded for it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from torch2mlx.compiler.hub import compiled_snapshot
from torch2mlx.compiler.pretrained.kinds import is_pretrained_config, is_pretrained_model


@pytest.mark.parametrize(
    ("name", "model_type", "compiled"),
    [
        ("BertModel", "bert", True),
        ("ViTForImageClassification", "vit", True),
        ("T5EncoderModel", "t5", True),
        ("LlamaForSequenceClassification", "llama", True),
        ("LlamaModel", "llama", False),
        ("LlamaForCausalLM", "llama", False),
        ("BertLMHeadModel", "bert", False),
        ("LlavaForConditionalGeneration", "llava", False),
        ("MyOwnModel", "mine", False),
        (7, "bert", False),
    ],
)
def test_by_class_and_model_type(name: Any, model_type: str, compiled: bool) -> None:
    config = {"architectures": [name], "model_type": model_type}
    assert is_pretrained_config(config) is compiled
    assert not is_pretrained_config({**config, "quantization_config": {"quant_method": "gptq"}})


@pytest.mark.parametrize("text", ["{", "[]", '{"architectures": "BertModel"}', "{}"])
def test_what_is_no_config_is_left_to_others(text: str, tmp_path: Path) -> None:
    assert not is_pretrained_model(tmp_path)
    (tmp_path / "config.json").write_text(text)
    assert not is_pretrained_model(tmp_path)
    assert not is_pretrained_model(tmp_path / "config.json")


@pytest.mark.parametrize("class_name", ["BertModel", "LlamaForCausalLM"])
def test_a_hub_id_is_downloaded_where_it_is_compiled(
    class_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"architectures": [class_name], "model_type": class_name[:4].lower()}
    asked = []

    def open_snapshot(location: Any, revision: Any, accept_config: Any, keep_download: bool) -> Any:
        accept_config(config)  # before anything else is downloaded
        asked.append((location.repo, revision, keep_download))
        (tmp_path / "config.json").write_text(json.dumps(config))
        return SimpleNamespace(folder=tmp_path)

    monkeypatch.setattr("torch2mlx.sources.hub.open_snapshot", open_snapshot)
    found = compiled_snapshot("owner/name", "main")
    compiled = class_name == "BertModel"
    assert found == (tmp_path if compiled else None)
    assert asked == ([("owner/name", "main", True)] if compiled else [])
    for other in (
        str(tmp_path),
        "package.module:factory",
        "owner/name/file.gguf",
        tmp_path,
        object(),
    ):
        assert compiled_snapshot(other, None) is None
