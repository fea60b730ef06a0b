"""Bits for a size that the user names, through the command line: the written folder, measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import torch2mlx
from torch2mlx.selection.memory import OVERHEAD


@pytest.fixture(scope="module")
def sizes(checkpoint) -> dict[str, int]:
    """Bytes of the weight files by strategy, and what a text of 64 tokens needs beside them."""
    found = torch2mlx.plan(checkpoint("llama"), context=64)
    files = {s.name: s.nbytes for s in found.strategies}
    first = found.strategies[0]
    return {**files, "beside": first.runtime_memory - first.nbytes}


def test_a_model_is_made_to_fit_a_memory(
    checkpoint, run_cli, tmp_path: Path, sizes: dict[str, int]
) -> None:
    """The limit lies between 5 and 6 bits, so bits are mixed; MLX then holds what was counted."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    limit = (sizes["5-bit"] + sizes["6-bit"]) // 2 + sizes["beside"]
    run = run_cli(
        "convert", checkpoint("llama"), tmp_path / "out", "-q", "--fit", limit, "--context", "64",
        "--quiet",
    )  # fmt: skip
    assert run.code == 0, run.message
    manifest = json.loads((tmp_path / "out" / "torch2mlx.json").read_text())
    memory = manifest["plan"]["memory"]
    files = sum(p.stat().st_size for p in (tmp_path / "out").glob("*.safetensors"))
    assert sizes["5-bit"] < files <= limit - sizes["beside"]
    widths = {s["bits"] for s in manifest["plan"]["schemes"].values()}
    assert len(widths) > 1
    model = load_model(tmp_path / "out")[0]
    arrays = [v for _, v in tree_flatten(model.parameters())]
    assert sum(a.nbytes for a in arrays) == memory["weights"]
    cache: Any = make_prompt_cache(model)
    mx.eval(model(mx.zeros((1, 64), mx.int32), cache=cache))
    held = [a for entry in cache for a in entry.state if isinstance(a, mx.array)]
    assert sum(2 * a.size for a in held) == memory["caches"]
    assert memory["weights"] + memory["beside"] == memory["total"] <= limit
    figures = {b["name"]: b["figures"] for b in manifest["verification"]["budgets"]}
    predicted = figures["quantization"]["predicted_kl"]
    assert predicted == pytest.approx(figures["quantization"]["mean_kl"], rel=1.5)


def test_what_fits_at_eight_bits_gets_eight(
    checkpoint, run_cli, tmp_path: Path, sizes: dict[str, int]
) -> None:
    run = run_cli(
        "convert", checkpoint("llama"), tmp_path / "out", "-q", "--fit", "1GB", "--context", "64",
        "--no-verify",
    )  # fmt: skip
    assert run.code == 0, run.message
    written = sum(p.stat().st_size for p in (tmp_path / "out").glob("*.safetensors"))
    assert written == sizes["8-bit"]
    assert "while running with 64 tokens, of 1 GB" in " ".join(run.out.split())


def test_what_fits_with_the_fewest_bits_alone_gets_them(
    checkpoint, run_cli, tmp_path: Path, sizes: dict[str, int]
) -> None:
    fewest = torch2mlx.convert(
        checkpoint("llama"), tmp_path / "fewest", quantize=True, q_bits=2, verify=False
    )
    least = (fewest.destination / "model.safetensors").stat().st_size
    run = run_cli(
        "convert", checkpoint("llama"), tmp_path / "out", "-q", "--fit", least + sizes["beside"],
        "--context", "64", "--no-verify", "--quiet",
    )  # fmt: skip
    assert run.code == 0, run.message
    assert (tmp_path / "out" / "model.safetensors").stat().st_size == least


def test_what_cannot_fit_is_refused_with_what_would(
    checkpoint, run_cli, tmp_path: Path, sizes: dict[str, int]
) -> None:
    limit = sizes["beside"] + sizes["3-bit"]
    command = ("convert", checkpoint("llama"), tmp_path / "out", "-q", "--no-verify", "--quiet")
    run = run_cli(*command, "--fit", limit, "--context", "20000")
    assert run.code == 2
    assert not (tmp_path / "out").exists()
    context = int(run.message.partition("--context ")[2].split()[0])
    assert 64 < context < 20_000
    assert run_cli(*command, "--fit", limit, "--context", context).code == 0
    hopeless = run_cli("convert", checkpoint("llama"), tmp_path / "no", "-q", "--fit", OVERHEAD)
    assert hopeless.code == 2
    assert "GB would fit" in hopeless.message
    assert "--context" not in hopeless.message


def test_what_cannot_be_measured_gets_equal_bits(
    copied, run_cli, tmp_path: Path, sizes: dict[str, int]
) -> None:
    """Without a tokenizer there is no text to measure with."""
    source = copied("llama")
    for path in (*source.glob("tokenizer*"), *source.glob("chat_template*")):
        path.unlink()
    run = run_cli(
        "convert", source, tmp_path / "out", "-q", "--fit", sizes["beside"] + sizes["5-bit"],
        "--context", "64", "--no-verify", "--quiet",
    )  # fmt: skip
    assert run.code == 0, run.message
    written = sum(p.stat().st_size for p in (tmp_path / "out").glob("*.safetensors"))
    assert written == sizes["5-bit"]


@pytest.mark.slow
def test_the_plan_predicts_what_each_choice_costs(
    checkpoint, run_cli, sizes: dict[str, int]
) -> None:
    limit = (sizes["4-bit"] + sizes["5-bit"]) // 2 + sizes["beside"]
    run = run_cli(
        "plan", checkpoint("llama"), "--quality", "--fit", limit, "--context", "64", "--json"
    )
    assert run.code == 0, run.message
    found = json.loads(run.out)
    by_name = {s["name"]: s for s in found["strategies"]}
    predicted = {name: s["predicted"] for name, s in by_name.items()}
    assert predicted["direct"] == 0
    assert predicted["8-bit"] < predicted["6-bit"] < predicted["4-bit"] < predicted["3-bit"]
    assert predicted["8-bit"] < predicted["mxfp4"]
    assert predicted["by module"] < predicted["4-bit"]
    assert sizes["4-bit"] <= by_name["by module"]["nbytes"] <= limit - sizes["beside"]
    assert found["recommended"] == "by module"


def test_context_belongs_to_fit(run_cli, checkpoint, tmp_path: Path) -> None:
    run = run_cli("convert", checkpoint("llama"), tmp_path / "o", "-q", "--context", "64")
    assert run.code == 2
    assert "--fit" in run.message
    run = run_cli("convert", checkpoint("llama"), tmp_path / "o", "-q", "--fit", "1GB", "--q-bits",
                  "4")  # fmt: skip
    assert run.code == 2
    assert "leave out --q-bits" in run.message
