"""The working folder of a calibration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from torch2mlx.architectures.port import load_port
from torch2mlx.calibration.engine import _question
from torch2mlx.calibration.fitting import Settings
from torch2mlx.calibration.scratch import Scratch, save_step
from torch2mlx.planning.expressions import Slice
from torch2mlx.planning.plan import build_plan
from torch2mlx.quantization.recipe import QuantOptions
from torch2mlx.quantization.scheme import Scheme
from torch2mlx.sources import open_checkpoint


def test_only_the_same_question_and_versions_go_on(tmp_path: Path, monkeypatch) -> None:
    def begun(settings: dict[str, int]) -> bool:
        return Scratch(tmp_path / "layers", settings).done("layer-00000")

    with Scratch(tmp_path / "layers", {"sweeps": 3}).writing("layer-00000") as folder:
        save_step(folder, {}, {})
    assert begun({"sweeps": 3})
    monkeypatch.setattr("torch2mlx.calibration.scratch.library_versions", lambda: {"torch": "0"})
    assert not begun({"sweeps": 3})
    monkeypatch.undo()
    assert not begun({"sweeps": 4})


def test_the_same_files_read_otherwise_are_another_question(checkpoint) -> None:
    """As with another --expert-layout."""
    source = open_checkpoint(checkpoint("llama_short"))
    plan = build_plan(source, load_port(source.config), quantize=QuantOptions(scheme=Scheme(4, 64)))
    source.source.close()
    first, *rest = plan.outputs
    rows, columns = first.expr.shape
    turned = Slice(first.expr, (range(rows - 1, -1, -1), range(columns)))
    ids = np.zeros((1, 8), np.int64)
    asked = _question(source, plan.outputs, ids, Settings(), "cpu")
    other = _question(source, [replace(first, expr=turned), *rest], ids, Settings(), "cpu")
    assert asked == _question(source, plan.outputs, ids, Settings(), "cpu")
    assert {key for key in asked if asked[key] != other[key]} == {"values"}
