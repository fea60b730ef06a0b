"""Plan files: carried out exactly, or refused with one message."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torch2mlx.selection.plan_file import seal


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("model*.safetensors"))}


def test_a_plan_is_carried_out_exactly(
    run_cli: Any, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    source, file = checkpoint("llama"), tmp_path / "plan.json"
    assert run_cli("plan", source, "--strategy", "6-bit", "--out", file).code == 0
    made = run_cli("convert", tmp_path / "planned", "--plan", file, "--no-verify", "--quiet")
    assert made.code == 0, made.err
    plain = run_cli(
        "convert", source, tmp_path / "plain", "-q", "--q-bits", 6, "--no-verify", "--quiet"
    )
    assert plain.code == 0, plain.err
    assert _bytes(tmp_path / "planned") == _bytes(tmp_path / "plain")
    row = next(s for s in json.loads(file.read_text())["strategies"] if s["name"] == "6-bit")
    assert row["nbytes"] == sum(map(len, _bytes(tmp_path / "planned").values()))
    # What --json prints is the same file, and the source may be named again.
    file.write_text(run_cli("plan", source, "--json").out)
    again = run_cli("convert", source, tmp_path / "again", "--plan", file, "--no-verify", "--quiet")
    assert again.code == 0, again.err
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["quantization"]["bits"] == 8  # what is recommended for a small model


def test_strategies_cover_the_ways_to_convert(
    run_cli: Any, checkpoint: Callable[..., Path]
) -> None:
    found = json.loads(run_cli("plan", checkpoint("llama"), "--json").out)
    rows = {row["name"]: row for row in found["strategies"]}
    wanted = {"direct", "8-bit", "6-bit", "4-bit", "3-bit", "mixed 4/6-bit", "4-bit calibrated"}
    assert wanted < set(rows)
    assert rows["direct on 2 Macs"]["runtime_memory"] < rows["direct"]["runtime_memory"]
    assert rows["4-bit calibrated"]["nbytes"] == rows["4-bit"]["nbytes"]
    assert rows["4-bit calibrated"]["kl"] < rows["4-bit"]["kl"]
    # mlx-lm's port of GPT-NeoX has no `shard`.
    other = json.loads(run_cli("plan", checkpoint("gpt_neox"), "--json").out)
    assert not any(row["machines"] > 1 for row in other["strategies"])
    assert run_cli("plan", checkpoint("gpt_neox"), "--strategy", "direct on 2 Macs").code == 2


def test_a_changed_source_is_refused(
    run_cli: Any, copied: Callable[..., Path], tmp_path: Path
) -> None:
    source, file = copied("llama"), tmp_path / "plan.json"
    assert run_cli("plan", source, "--out", file).code == 0
    weights = source / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    refused = run_cli("convert", tmp_path / "out", "--plan", file, "--quiet")
    assert refused.code == 5
    assert "model.safetensors" in refused.message
    assert "make the plan again" in refused.message
    assert not (tmp_path / "out").exists()


def _edit(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda plan: {**plan, **changes}


def _resealed(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda plan: seal({**plan, **changes})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_edit(chosen="3-bit"), "was edited"),
        (_edit(location="elsewhere"), "was edited"),
        (_resealed(options={"quantize": True, "q_bits": 2}), "other options"),
        (_resealed(options={"trust_remote_code": True}), "other options"),
        (_resealed(options={"quantize": True, "q_bits": 8, "revision": ["x"]}), "neither text"),
        (_resealed(location="os:system"), "names a program"),
        (_resealed(location="evil.pt2"), "names a program"),
        (_resealed(location=7), "lacks its source"),
        (_resealed(chosen="../../etc"), "no strategy"),
        (_resealed(chosen=None), "no strategy"),
        (_resealed(fingerprint=[]), "lacks its source"),
        (_resealed(strategies=3), "no strategy"),
        (_resealed(schema_version=2), "no plan of form 1"),
        (lambda plan: [plan], "is no plan"),
    ],
)
def test_an_edited_or_hostile_plan_is_refused(
    edit: Callable[[dict[str, Any]], Any],
    message: str,
    run_cli: Any,
    checkpoint: Callable[..., Path],
    tmp_path: Path,
    plan_of_llama: dict[str, Any],
) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(edit(plan_of_llama)))
    refused = run_cli("convert", tmp_path / "out", "--plan", file)
    assert refused.code == 3, refused.err
    assert message in refused.message
    assert refused.err.count("error: ") == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def plan_of_llama(checkpoint: Callable[..., Path]) -> dict[str, Any]:
    import torch2mlx

    return torch2mlx.plan(checkpoint("llama")).to_dict()


def test_what_the_plan_decides_is_not_asked_twice(
    run_cli: Any, checkpoint: Callable[..., Path], tmp_path: Path, plan_of_llama: dict[str, Any]
) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan_of_llama))
    asked = run_cli("convert", tmp_path / "out", "--plan", file, "-q", "--q-bits", 2)
    assert asked.code == 2
    assert "leave out --q-bits, --quantize" in asked.message
    other = run_cli("convert", checkpoint("mixtral"), tmp_path / "out", "--plan", file)
    assert other.code == 2
    assert "is a plan for" in other.message
    file.write_text(json.dumps(seal({**plan_of_llama, "strategies": _smaller(plan_of_llama)})))
    wrong = run_cli("convert", tmp_path / "out", "--plan", file, "--no-verify", "--quiet")
    assert wrong.code == 5
    assert "bytes of weights here" in wrong.message
    file.write_text("{" * 100_000)
    assert run_cli("convert", tmp_path / "out", "--plan", file).code == 3
    assert run_cli("convert", tmp_path / "out", "--plan", tmp_path / "none").code == 3


def _smaller(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**row, "nbytes": row["nbytes"] - 8} for row in plan["strategies"]]
