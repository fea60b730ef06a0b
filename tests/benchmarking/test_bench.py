"""Benchmarks: what is measured, what is said not to be, and that both engines do the same work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import torch2mlx
from torch2mlx.benchmarking import FIGURES, Row
from torch2mlx.benchmarking.machine import EnergyMeter
from torch2mlx.benchmarking.modules import call_arguments, example_inputs
from torch2mlx.benchmarking.run import parse_sizes
from torch2mlx.benchmarking.timing import time_calls, time_streams
from torch2mlx.benchmarking.worker import measure
from torch2mlx.errors import OptionError


def _request(**changes: Any) -> dict[str, Any]:
    plain = {
        "engine": "mlx", "device": "cpu", "kind": "language", "prompts": ["the sun", "the stars"],
        "max_tokens": 4, "repeats": 2, "sizes": {}, "trust_remote_code": False, "tokenizer": True,
        "ids": [], "config": None,
    }  # fmt: skip
    return plain | changes


def test_both_engines_answer_with_the_same_tokens(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from torch2mlx.benchmarking.mlx_engine import mlx_stream
    from torch2mlx.benchmarking.torch_engine import eager_stream
    from torch2mlx.loading import load_language_model

    source = checkpoint("llama", dtype="float32")
    torch2mlx.convert(source, tmp_path / "mlx", verify=False)
    ids = [5, 17, 200, 31, 8]
    original: Any = AutoModelForCausalLM.from_pretrained(source)
    expected = original.generate(
        torch.tensor([ids]), max_new_tokens=6, min_new_tokens=6, do_sample=False
    )[0, len(ids) :].tolist()
    assert list(eager_stream(original.eval(), "cpu")(ids, 6)) == expected
    model, _ = load_language_model(tmp_path / "mlx")
    assert list(mlx_stream(model)(ids, 6)) == expected


def test_rows_of_a_language_model(
    checkpoint: Callable[..., Path],
    tmp_path: Path,
    run_cli: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch2mlx.benchmarking.run._run", measure)  # without its own process
    source = checkpoint("llama")
    torch2mlx.convert(source, tmp_path / "mlx", verify=False)
    torch2mlx.convert(source, tmp_path / "q8", verify=False, quantize=True, q_bits=8)
    (tmp_path / "prompts.txt").write_text("the sun rises\n\nthe stars go out\n")
    run = run_cli(
        "bench", tmp_path / "mlx", tmp_path / "q8", "--torch", source, "--max-tokens", 3,
        "--repeats", 2, "--prompts", tmp_path / "prompts.txt", "--json", "--quiet",
        "--out", tmp_path / "bench.json",
    )  # fmt: skip
    assert run.code == 0, run.err
    found = json.loads(run.out)
    assert found == json.loads((tmp_path / "bench.json").read_text())
    assert found["prompts"] == 2
    rows = {Path(row["model"]).name: Row.from_dict(row) for row in found["rows"]}
    assert set(rows) == {source.name, "mlx", "q8"}
    assert [rows[n].engine for n in (source.name, "mlx")] == ["torch eager", "mlx"]
    for row in rows.values():
        for name in FIGURES:  # measured, or said not to be
            spread = getattr(row, name)
            assert (spread is None) == (name in row.not_measured)
            if spread is not None:
                assert 0 < spread.low <= spread.median <= spread.high
        assert row.dtype == "float32"
        assert row.decode_tps is not None
        assert row.decode_tps.runs == 2
        assert row.peak_bytes is not None
        assert row.base_bytes is not None
        assert row.peak_bytes.median >= row.base_bytes
    files = list((tmp_path / "q8").glob("*.safetensors"))
    assert rows["q8"].size_bytes == sum(path.stat().st_size for path in files)


def test_a_failing_engine_is_a_row_without_figures(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    row = measure(_request(model=str(tmp_path)))
    assert row.error is not None
    assert "mlx-lm cannot load it" in row.error
    assert all(getattr(row, name) is None for name in FIGURES)
    absent = measure(_request(model=str(tmp_path), engine="torch eager", device="mps"))
    assert "no device 'mps'" in str(absent.error)


def test_passes_are_counted_and_the_first_is_not() -> None:
    asked: list[tuple[int, int]] = []

    def stream(ids: Any, tokens: int) -> Any:
        asked.append((len(ids), tokens))
        yield from range(tokens)

    found = time_streams(stream, [lambda: [1, 2], lambda: [3]], 5, 3, EnergyMeter(Path("/none")))
    assert asked == [(2, 5), (1, 5)] * 4
    assert found["decode_tps"].runs == found["ttft_s"].runs == 3
    assert found["energy_j"] is None
    assert "energy_j" in found["not_measured"]
    single = time_streams(stream, [lambda: [1]], 1, 1, EnergyMeter(Path("/none")))
    assert single["decode_tps"] is None
    assert "decode_tps" in single["not_measured"]


def test_energy_is_read_from_packages_alone(tmp_path: Path) -> None:
    for name, value in (("intel-rapl:0", 4_000_000), ("intel-rapl:0:0", 9_000_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{value}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("10000000\n")
    meter = EnergyMeter(tmp_path)
    counter = tmp_path / "intel-rapl:0" / "energy_uj"
    before = meter.read()
    assert before == [4_000_000]
    counter.write_text("6500000\n")
    assert meter.joules_since(before) == 2.5
    counter.write_text("1000000\n")  # began anew
    assert meter.joules_since(before) == 7.0
    assert time_calls(lambda: None, 2, meter)["energy_j"].runs == 2


def test_inputs_of_modules() -> None:
    config = {
        "inputs": [
            {"name": "x", "dtype": "bfloat16", "shape": ["batch", "2*length + 1"]},
            {"name": "mask", "dtype": "bool", "shape": ["batch"]},
            {"name": "ids", "dtype": "int64", "shape": [3]},
        ]
    }
    found = example_inputs(config, parse_sizes(["batch=4"]))
    assert [value.shape for value in found.values()] == [(4, 17), (4,), (3,)]
    assert set(found["ids"].tolist()) <= {0, 1}
    again = example_inputs(config, {"batch": 4})
    assert all((found[name] == again[name]).all() for name in found)
    assert call_arguments(lambda x, mask, ids, more=None: None, found)[1] == found
    assert len(call_arguments(lambda a, b, c: None, found)[0]) == 3
    with pytest.raises(OptionError, match="plain arrays"):
        call_arguments(lambda nested: None, found)
    for shape in ("__import__('os')", "batch**9", "8 - 9"):
        with pytest.raises(OptionError):
            example_inputs({"inputs": [{"name": "x", "dtype": "int8", "shape": [shape]}]}, {})


def test_what_cannot_be_compared_is_refused(run_cli: Any, tmp_path: Path) -> None:
    assert "config.json is missing" in run_cli("bench", tmp_path).message
    (tmp_path / "config.json").write_text('{"model_class": "M"}')
    refused = run_cli("bench", tmp_path)
    assert refused.code == 2
    assert "--trust-remote-code" in refused.message
    assert run_cli("bench", tmp_path, "--repeats", 0).code == 2
    assert run_cli("bench", tmp_path, "--compile").code == 2
    assert run_cli("bench", tmp_path, "--size", "batch").code == 2
    assert run_cli("bench", tmp_path, "--prompts", tmp_path / "none").code == 3


@pytest.mark.slow
def test_a_module_on_both_engines(
    tmp_path: Path, run_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "timed_modules.py").write_text(
        "import torch\n\n\ndef build():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU())\n"
    )
    import torch

    monkeypatch.chdir(tmp_path)
    torch.save(torch.randn(4, 8), "inputs.pt")
    source = "timed_modules:build"
    made = run_cli("convert", source, "out", "--example", "inputs.pt", "--dynamic", "input:0=batch")
    assert made.code == 0, made.err
    run = run_cli(
        "bench", "out", "--torch", source, "--compile", "--trust-remote-code", "--repeats", 2,
        "--size", "batch=3", "--json", "--quiet",
    )  # fmt: skip
    assert run.code == 0, run.err
    rows = [Row.from_dict(row) for row in json.loads(run.out)["rows"]]
    assert [row.engine for row in rows] == ["torch eager", "torch compile", "mlx"]
    assert all(row.latency_s is not None and row.ttft_s is None for row in rows)
