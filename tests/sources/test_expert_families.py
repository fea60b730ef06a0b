"""Families of experts: drawn, brought into their usual layout, converted, and carried back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import add_tokenizer, build, quiet_libraries
from safetensors.torch import load_file, save_file
from zoo import CASES

import torch2mlx
from torch2mlx.architectures.port import load_port
from torch2mlx.dtypes import DTYPES
from torch2mlx.errors import PlanError, SourceError
from torch2mlx.inspection.moves import moved_experts
from torch2mlx.planning.functions import cast
from torch2mlx.planning.inverse import restore_state
from torch2mlx.planning.regions import full
from torch2mlx.sources import open_checkpoint
from torch2mlx.sources.experts import usual_experts
from torch2mlx.verification.reference import read_state

# What transformers' modules call them, and the layout there; None: as checkpoints have it.
FUSED: dict[str, str | None] = {
    "mixtral": "concatenated",
    "qwen2_moe": "concatenated",
    "qwen3_moe": "concatenated",
    "deepseek_v2": "concatenated",
    "deepseek_v3": "concatenated",
    "olmoe": "concatenated",
    "gpt_oss": "interleaved-transposed",
    "dbrx": None,
    "granitemoe": "concatenated",
    "phimoe": "concatenated",
    "jamba": "concatenated",
    "llama4_text": "concatenated-transposed",
    "glm4_moe": "concatenated",
    "minimax": "concatenated",
    "minimax_m2": "concatenated",
    "ernie4_5_moe": "concatenated",
}
# mlx-lm's port leaves tensors of these out or is of another model: theirs is generated while they
# are converted.
GENERATED = ("ernie4_5_moe", "minimax")
PARAMETERS = [pytest.param(n, id=n) for n in FUSED]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quiet_libraries()


def saved(name: str, folder: Path) -> Path:
    """The family's tiny model as checkpoints have it, and the same as modules in `folder`/fused."""
    case = next(c for c in CASES if c.name == name)
    model = build(case).float()
    model.save_pretrained(folder / "usual")
    model.save_pretrained(folder / "fused", save_original_format=False)
    for place in ("usual", "fused"):
        add_tokenizer(case.model_type, folder / place)
    return folder


def turned(folder: Path, name: str) -> str | None:
    """Lay the fused experts out in another way than the family's; its name."""
    own = FUSED[name]
    if own is None:
        return None
    file = folder / "fused" / "model.safetensors"
    tensors = load_file(file)
    taken = own.startswith("interleaved")
    for key, tensor in tensors.items():
        bias = key.endswith("_bias")
        if not key.rpartition(".")[2].startswith(("gate_up_proj", "down_proj")) or (
            "experts" not in key or "shared" in key
        ):
            continue
        if own.endswith("transposed") and not bias:
            tensor = tensor.transpose(1, 2)
        if "gate_up_proj" in key:
            halves = (tensor[:, 0::2], tensor[:, 1::2]) if taken else tensor.chunk(2, 1)
            tensor = torch.cat(halves, 1) if taken else torch.stack(halves, 2).flatten(1, 2)
        if not own.endswith("transposed") and not bias:
            tensor = tensor.transpose(1, 2)
        tensors[key] = tensor.contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    order = "concatenated" if taken else "interleaved"
    return order if own.endswith("transposed") else f"{order}-transposed"


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_family_is_drawn_split_and_carried_back(name: str, tmp_path: Path) -> None:
    folder = saved(name, tmp_path)
    usual = open_checkpoint(folder / "usual")
    expected = read_state(usual.state, usual.source)
    layers = torch2mlx.inspect(folder / "usual").expert_layout
    count, active = (8, 2) if name in ("deepseek_v2", "deepseek_v3", "glm4_moe") else (4, 2)
    active = 1 if name == "llama4_text" else active
    drawn = [line for line in layers if line.startswith("layers") and "experts" in line]
    assert drawn, layers
    assert all(f"{count} experts, {active} for a token" in line for line in drawn), layers
    moves = "\n".join(moved_experts(usual))
    assert "in the checkpoint:" in moves
    assert ("in MLX:" in moves) == (name not in GENERATED)

    for layout in (None, turned(folder, name)):
        other = open_checkpoint(folder / ("fused" if layout else "usual"))
        state = usual_experts(other.state, other.config, layout)
        found = read_state(state, other.source)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[n], t) for n, t in expected.items()), layout
        if name in GENERATED:
            continue
        outputs = load_port(other.config).map_state(state).outputs
        floats = {n: cast(e, DTYPES["F32"]) for n, e in outputs.items()}

        def read(tensor: str, start: int, stop: int, floats: Any = floats, at: Any = other) -> Any:
            region = (range(start, stop), *full(floats[tensor].shape[1:]))
            return np.ascontiguousarray(floats[tensor].read(region, at.source))

        stored = read_state(other.state, other.source)
        restored = {r.name: r for r in restore_state(outputs, read, other.state)}
        assert restored.keys() == stored.keys()
        for tensor, values in stored.items():
            assert restored[tensor].covered is None, (tensor, restored[tensor].reason)
            assert np.array_equal(restored[tensor].values, values.numpy()), tensor


@pytest.mark.parametrize("name", ["granitemoe", "phimoe", "ernie4_5_moe"])
def test_modules_names_become_the_checkpoints(name: str, tmp_path: Path) -> None:
    folder = saved(name, tmp_path)
    usual, fused = (open_checkpoint(folder / n) for n in ("usual", "fused"))
    assert usual_experts(fused.state, fused.config).keys() == usual.state.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETERS)
def test_another_layout_passes_the_gate(name: str, tmp_path: Path) -> None:
    folder = saved(name, tmp_path)
    layout = turned(folder, name)
    made = torch2mlx.convert(folder / "fused", tmp_path / "out", expert_layout=layout)
    assert made.manifest.verification["audit"]["passed"]
    assert torch2mlx.verify(folder / "fused", tmp_path / "out", expert_layout=layout).passed


@pytest.mark.parametrize("name", ["glm4_moe", "dbrx", "granitemoe", "llama4_text"])
def test_a_missing_expert_is_named(name: str, tmp_path: Path) -> None:
    folder = saved(name, tmp_path)
    file = folder / "usual" / "model.safetensors"
    tensors = load_file(file)
    if name == "glm4_moe":
        lost = "model.layers.1.mlp.experts.5.up_proj.weight"
        del tensors[lost]
        words = "experts.5.up_proj"
    else:  # the last expert's part of what holds all of them
        lost = next(
            n for n in tensors if n.endswith(("mlp.w1", "input_linear.weight", "gate_up_proj"))
        )
        rows = tensors[lost].shape[0]
        tensors[lost] = tensors[lost][: rows - (rows // 4)].contiguous()
        words = lost.rpartition(".")[0]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises((PlanError, SourceError), match=words.replace(".", r"\.")):
        torch2mlx.convert(folder / "usual", tmp_path / "out")
    assert not (tmp_path / "out").exists()
