"""Architectures whose way back from the written files to PyTorch is not plain, as users convert.

Image towers and experts without weights that ports leave out, factors folded into weights, and
a port under another name than the model type.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkpoints import TOLERANCE, add_tokenizer, model_error, prepare, quiet_libraries
from zoo import CASES, Case

import torch2mlx
from torch2mlx.errors import ParityError

QUICK = ("gemma3", "llama4", "falcon_h1", "longcat_flash", "qwen3_5_text")
OTHERS = (
    "mistral3",
    "mistral3-ministral3",
    "qwen2_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "gemma4",
    "phimoe",
    "minimax",
)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quiet_libraries()


def _case(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def _names() -> list[Any]:
    return [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]


@pytest.mark.parametrize("name", _names())
def test_conversions_pass_the_gate_and_equal_pytorch(name: str, tmp_path: Path) -> None:
    from mlx_lm.utils import load_model

    case = _case(name)
    saved = prepare(case, tmp_path / "saved")
    add_tokenizer(case.model_type, saved.folder)
    torch2mlx.convert(saved.folder, tmp_path / "mlx", dtype="float32")
    model, _ = load_model(tmp_path / "mlx", trust_remote_code=True)
    assert model_error(saved, model) < TOLERANCE


def test_quantized_values_are_carried_back_through_folded_factors(tmp_path: Path) -> None:
    saved = prepare(_case("falcon_h1"), tmp_path / "saved")
    result = torch2mlx.convert(
        saved.folder, tmp_path / "mlx", quantize=True, q_bits=4, q_group_size=32
    )
    assert {b["name"] for b in result.manifest.verification["budgets"]} >= {"quantization"}


@pytest.mark.parametrize(
    ("name", "module", "attribute"),
    [
        ("gemma3", "mlx_lm.models.gemma3_text", "Attention"),
        ("falcon_h1", "mlx_lm.models.falcon_h1", "FalconH1Attention"),
    ],
)
def test_a_port_that_computes_something_else_is_refused(
    name: str, module: str, attribute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import import_module

    saved = prepare(_case(name), tmp_path / "saved")
    attention = getattr(import_module(module), attribute)
    original = attention.__call__

    def off_by_little(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        return output + 0.02 * output[..., ::-1]  # a factor alone would vanish in a norm

    monkeypatch.setattr(attention, "__call__", off_by_little)
    monkeypatch.setattr("torch2mlx.routing.may_generate", lambda _: False)
    with pytest.raises(ParityError, match="twin"):
        torch2mlx.convert(saved.folder, tmp_path / "mlx", dtype="float32")
    assert not (tmp_path / "mlx").exists()
