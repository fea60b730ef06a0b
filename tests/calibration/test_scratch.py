"""The working folder of a calibration."""

from __future__ import annotations

from pathlib import Path

from torch2mlx.calibration.scratch import Scratch, save_step


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
