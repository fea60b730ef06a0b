from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import torch2mlx
from torch2mlx.errors import PlanError, SourceError

Make = Callable[[], Path]


@pytest.fixture
def sharded(checkpoint: Callable[..., Path], tmp_path: Path) -> Make:
    """An MLX folder of several files, with its index."""

    def make() -> Path:
        options = {"verify": False, "max_shard_size": "500KB"}
        return torch2mlx.convert(checkpoint("llama"), tmp_path / "mlx", **options).destination

    return make


def _lose(folder: Path, number: int) -> str:
    lost = sorted(folder.glob("model*.safetensors"))[number]
    lost.unlink()
    return lost.name


@pytest.mark.parametrize("number", [0, 1, -1])
@pytest.mark.parametrize("index", [True, False])
def test_a_lost_file_is_named(
    checkpoint: Callable[..., Path], sharded: Make, number: int, index: bool
) -> None:
    folder = sharded()
    assert len(list(folder.glob("model*.safetensors"))) > 2
    if not index:
        (folder / "model.safetensors.index.json").unlink()
    name = _lose(folder, number)
    with pytest.raises(SourceError, match=f"1 of .* missing: {name}; "):
        torch2mlx.verify(checkpoint("llama"), folder)


def test_all_files_lost_are_named(checkpoint: Callable[..., Path], sharded: Make) -> None:
    folder = sharded()
    for path in folder.glob("model*.safetensors"):
        path.unlink()
    with pytest.raises(SourceError, match=r"model-00001-of-"):
        torch2mlx.verify(checkpoint("llama"), folder)


def test_an_index_of_other_files_plays_no_part(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = torch2mlx.convert(checkpoint("llama"), tmp_path / "mlx", verify=False).destination
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00004.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch2mlx.verify(checkpoint("llama"), folder).report.passed


def test_settings_of_config_that_do_not_fit_the_weights_are_named(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    source = checkpoint("llama_short")
    folder = torch2mlx.convert(source, tmp_path / "mlx", quantize=True, verify=False).destination
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization"] == {"group_size": 64, "bits": 4, "mode": "affine"}
    module = "model.layers.0.mlp.down_proj"
    for changes, words in (
        ({"quantization": {"group_size": 64, "bits": 3}}, "stored as 4-bit affine, groups of 64"),
        ({"quantization": "4bit"}, "quantization is '4bit'; expected an object"),
        ({"quantization": {**config["quantization"], module: {"bits": "x"}}}, f"{module}.weight: "),
        ({"runtime_precision": {"self_attn": "int4"}}, "'self_attn=int4': choose one of"),
        ({"runtime_precision": {"attn": "float32"}}, "'attn' matches no module"),
        ({"runtime_precision": "float32"}, "runtime_precision: expected an object"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(PlanError) as caught:
            torch2mlx.verify(source, folder)
        assert words in str(caught.value)
