from __future__ import annotations

import pytest

from torch2mlx.reporting import terminal


def test_long_stages_tell_a_log_how_long_they_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What an interrupted run had done already says nothing of the speed."""
    now = [100.0]
    monkeypatch.setattr(terminal, "monotonic", lambda: now[0])
    with terminal.Bars().stage("Calibrating", 1000) as advance:
        advance(400)
        for _ in range(4):
            now[0] += 20
            advance(50)
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert lines == [
        "Calibrating",
        "Calibrating: 50%, about 3 min left",
        "Calibrating: 60%, about 3 min left",
    ]
