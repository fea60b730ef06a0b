"""Every planted hazard is named; what is healthy has none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import torch2mlx
from torch2mlx.dtypes import parse_dtype
from torch2mlx.inspection.layout import draw_experts, expert_layouts, parameters_by_class
from torch2mlx.planning.expressions import Source

Checkpoint = Callable[..., Path]


def _change(path: Path, **values: Any) -> None:
    found = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in {**found, **values}.items() if v is not None}))


def _config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: _change(folder / "config.json", **values)


def _tokenizer(**values: Any) -> Callable[[Path], None]:
    return lambda folder: _change(folder / "tokenizer_config.json", **values)


def _resaved(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def resave(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return resave


def _as_pickle(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def _without_tokenizer(folder: Path) -> None:
    for path in [*folder.glob("*token*"), folder / "chat_template.jinja"]:
        path.unlink(missing_ok=True)


def _beyond(folder: Path) -> None:
    found = json.loads((folder / "tokenizer.json").read_text())
    found["added_tokens"].append({"id": 9999, "content": "<|far|>", "special": True})
    (folder / "tokenizer.json").write_text(json.dumps(found))


def _never_ends(folder: Path) -> None:
    _change(folder / "config.json", eos_token_id=None)
    _change(folder / "generation_config.json", eos_token_id=None)
    _change(folder / "tokenizer_config.json", eos_token=None)


def _add_head(tensors: dict[str, Any]) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def _as_double(tensors: dict[str, Any]) -> None:
    for name in list(tensors):
        tensors[name] = tensors[name].double()


_PLANTED: list[tuple[str, str, Callable[[Path], None], str]] = [
    ("llama", "float16 overflow", _config(model_type="gemma2"), "overflows float16"),
    ("llama", "pickle", _as_pickle, "the weights are pickles"),
    ("llama", "remote code", _config(auto_map={"AutoModel": "m.M"}), "its own Python code"),
    ("llama", "tokenizer code", _tokenizer(auto_map={"x": "t.T"}), "tokenizer brings its own"),
    ("llama_tied", "shared tensors", _resaved(_add_head), "lm_head.weight is stored although"),
    ("llama_wide", "odd widths", lambda folder: None, "64 does not divide (272)"),
    ("llama", "no template", _without_template, "no chat template"),
    ("llama", "no tokenizer", _without_tokenizer, "no tokenizer files"),
    ("llama", "foreign tokenizer", _beyond, "ids up to 9999, the embedding 288 rows"),
    ("llama", "no end", _never_ends, "generation never stops"),
    ("llama", "unknown end", _tokenizer(eos_token="<end>"), "'<end>', which is not"),
    ("llama", "no port", _config(model_type="llamma"), "no port for model type 'llamma'"),
    ("llama", "float64", _resaved(_as_double), "float64 weights"),
    (
        "llama",
        "damaged tokenizer",
        lambda folder: (folder / "tokenizer.json").write_text('{"model": {}}') and None,
        "no vocabulary",
    ),
]


@pytest.mark.parametrize(
    ("name", "plant", "words"),
    [pytest.param(n, plant, words, id=title) for n, title, plant, words in _PLANTED],
)
def test_a_planted_hazard_is_named(
    name: str, plant: Callable[[Path], None], words: str, copied: Checkpoint, run_cli: Any
) -> None:
    folder = copied(name)
    plant(folder)
    shown = run_cli("inspect", folder)
    assert shown.code == 0, shown.err
    assert words in " ".join(shown.out.split())


def test_an_unsafe_pickle_is_named(copied: Checkpoint, run_cli: Any) -> None:
    import torch

    class Unsafe:
        def __reduce__(self) -> tuple[Any, ...]:
            return print, ("run",)

    folder = copied("llama")
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(2), "x": Unsafe()}, folder / "pytorch_model.bin")
    refused = run_cli("inspect", folder)
    assert refused.code == 3
    assert "print" in refused.message
    assert "nothing was run" in refused.message


@pytest.mark.parametrize("name", ["llama", "llama_tied", "phi3", "mixtral", "qwen3_moe"])
def test_healthy_checkpoints_have_no_hazard(name: str, checkpoint: Checkpoint) -> None:
    assert torch2mlx.inspect(checkpoint(name)).hazards == ()


def test_classes_and_licence(copied: Checkpoint) -> None:
    folder = copied("mixtral")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Model\nlicense: other\n")
    found = torch2mlx.inspect(folder)
    assert found.licence == "apache-2.0"
    assert sum(found.classes.values()) == found.parameters
    assert found.classes["experts"] == 3 * 4 * 3 * 128 * 256
    assert found.classes["router"] == 3 * 4 * 128
    assert set(found.classes) == {"experts", "router", "attention", "embedding", "head", "norm"}
    assert set(found.costs) == {"memory", "quantization", "architecture", "tokenizer"}
    assert "100 % of the weights" not in found.costs["quantization"]


def test_expert_layouts_are_drawn(checkpoint: Checkpoint) -> None:
    drawn = torch2mlx.inspect(checkpoint("deepseek_v3")).expert_layout
    assert drawn[0].split()[:4] == ["layers", "0", "■", "dense"]
    assert "layers 1-2     ■ + ■■□□  4 experts, 2 for a token, one for all" in drawn[1]
    assert torch2mlx.inspect(checkpoint("llama")).expert_layout == ()
    state = {
        f"model.layers.{layer}.mlp.experts.gate_up_proj": Source(
            "x", parse_dtype("BF16"), (128, 8, 4)
        )
        for layer in range(2)
    }
    (line,) = draw_experts(expert_layouts(state), 8)
    assert "■■■■■■■■□□□□□□□□…  128 experts, 8 for a token, in one tensor" in line
    assert parameters_by_class(state) == {"experts": 2 * 128 * 8 * 4}
