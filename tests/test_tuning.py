"""Bounds on the quality, blame and cures, through the command line: the folder, measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torch2mlx import tuning
from torch2mlx.calibration.conversion import calibration_folder

# Eight bits for all but one layer, which is then to blame.
PLANTED = ("-q", "--q-bits", "8", "--bits", "layers.1.*=2", "--quiet")


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "torch2mlx.json").read_text())


def figures_of(folder: Path) -> dict[str, float]:
    budgets = manifest_of(folder)["verification"]["budgets"]
    return next(b["figures"] for b in budgets if b["name"] == "quantization")


@pytest.fixture(scope="module")
def planted(checkpoint, tmp_path_factory) -> dict[str, float]:
    import torch2mlx

    folder = tmp_path_factory.mktemp("planted") / "out"
    torch2mlx.convert(
        checkpoint("llama_tied"), folder, quantize=True, q_bits=8, bits=["layers.1.*=2"]
    )
    return figures_of(folder)


def test_the_layer_to_blame_is_named_with_its_cure(
    checkpoint, run_cli, tmp_path: Path, planted: dict[str, float]
) -> None:
    run = run_cli(
        "convert", checkpoint("llama_tied"), tmp_path / "out", *PLANTED, "--max-kl",
        planted["mean_kl"] / 2,
    )  # fmt: skip
    assert run.code == 8
    assert not (tmp_path / "out").exists()
    assert f"the mean KL divergence is {planted['mean_kl']:.4g}" in run.message
    assert "most comes from layer 1 (" in run.message
    share = int(run.message.partition("layer 1 (")[2].partition("%")[0])
    assert share > 90
    assert "of which model.layers.1." in run.message
    cures = run.message.partition("cheapest cure first: ")[2]
    assert cures.startswith("--calibrate, at the same size; more bits where most is lost: --bits")
    assert "--bits 'layers.1.*=4'" in cures


@pytest.mark.slow
def test_cures_are_tried_until_the_bound_holds(
    checkpoint, run_cli, tmp_path: Path, planted: dict[str, float], monkeypatch
) -> None:
    """Killed in its second attempt, the run goes on there."""
    bound = planted["mean_kl"] / 50
    text = tmp_path / "text.txt"
    text.write_text("the sun rises and the stars go out over the hills of the north " * 60)
    command = (
        "convert", checkpoint("llama_tied"), tmp_path / "out", *PLANTED, "--auto", "--max-kl",
        bound, "--calibration-text", text, "--calibration-tokens", "256",
    )  # fmt: skip
    tried = []
    attempt = tuning.Tuning._attempt

    def killed(self, convert):
        tried.append(self.conversion.options)
        if len(tried) == 2:
            raise KeyboardInterrupt
        return attempt(self, convert)

    monkeypatch.setattr(tuning.Tuning, "_attempt", killed)
    assert run_cli(*command).code == 130
    assert not (tmp_path / "out").exists()
    run = run_cli(*command)
    assert run.code == 0, run.message
    assert tried[2] == tried[1]
    manifest = manifest_of(tmp_path / "out")
    attempts = manifest["plan"]["attempts"]
    assert len(attempts) == len(tried) - 1 >= 3
    assert [a["cure"] for a in attempts[:2]] == ["as asked", "--calibrate, at the same size"]
    assert "layers.1.*=4" in attempts[2]["cure"]
    assert all(a["problems"] for a in attempts[:-1])
    assert attempts[-1]["problems"] == []
    assert attempts[0]["figures"]["mean_kl"] == pytest.approx(planted["mean_kl"])
    assert figures_of(tmp_path / "out")["mean_kl"] <= bound
    assert "layers.1" in attempts[0]["blamed"][0] or "layer 1" in attempts[0]["blamed"][0]
    formats = manifest["plan"]["schemes"]
    assert {s["bits"] for m, s in formats.items() if ".layers.0." in m} == {8}
    assert min(s["bits"] for m, s in formats.items() if ".layers.1." in m) > 2
    assert manifest["options"]["bits"] == ["layers.1.*=2"]
    assert not calibration_folder(tmp_path / "out").exists()


@pytest.mark.slow
def test_nothing_is_published_where_no_cure_helps(checkpoint, run_cli, tmp_path: Path) -> None:
    run = run_cli(
        "convert", checkpoint("llama_tied"), tmp_path / "out", "-q", "--q-bits", "8",
        "--q-group-size", "32", "--calibrate", "--calibration-tokens", "256", "--max-context",
        "64", "--auto", "--max-kl", "1e-12", "--quiet",
    )  # fmt: skip
    assert run.code == 8
    assert "Nothing is left to try" in run.message
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_loops_beyond_the_originals_are_counted(checkpoint, run_cli, tmp_path: Path) -> None:
    """Against texts of the written folder, generated anew from its dequantized weights."""
    import mlx.core as mx
    import torch
    from mlx_lm.utils import load_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from torch2mlx.verification.looping import greedy_texts
    from torch2mlx.verification.quality import evaluation_text, tail_loop_rate, text_windows

    source = checkpoint("llama_tied", "float32")
    run = run_cli("convert", source, tmp_path / "out", "-q", "--q-bits", "3", "--max-loops", "1",
                  "--max-perplexity", "1e9", "--quiet")  # fmt: skip
    assert run.code == 0, run.message
    figures = figures_of(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source)
    prompts = text_windows(lambda t: tokenizer(t).input_ids, evaluation_text(), 64, 32)
    assert len(prompts) >= 50
    before = greedy_texts(model, prompts)
    assert figures["reference_loops"] == tail_loop_rate(before)
    written: Any = load_model(tmp_path / "out")[0]
    with torch.no_grad():
        for name, module in written.named_modules():
            if "scales" in module:
                values = mx.dequantize(
                    module.weight, module.scales, module.biases, module.group_size, module.bits
                )
                model.get_parameter(f"{name}.weight").copy_(torch.from_numpy(np.array(values)))
    texts = greedy_texts(model, prompts)
    assert texts != before
    assert figures["loops"] == tail_loop_rate(texts)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--auto",), "name one, such as --max-kl"),
        (("--auto", "--max-kl", "1", "--also", "8bit"), "leave out --also"),
        (("--max-loops", "5"), "a share from 0 to 1"),
        (("--max-perplexity", "0.5"), "1 or more"),
        (("--max-kl", "1", "--no-verify"), "leave out --no-verify"),
        (("--calibrate", "--distill", "--q-mode", "mxfp4"), "of the affine format, not of mxfp4"),
    ],
)
def test_bounds_that_make_no_sense(run_cli, checkpoint, tmp_path, options, expected) -> None:
    run = run_cli("convert", checkpoint("llama"), tmp_path / "o", "-q", *options)
    assert run.code == 2
    assert expected in run.message
