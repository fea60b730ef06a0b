"""How a task is solved twice, with a small model in place of a pretrained one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from pretrained import running
from pretrained.task import Case, Part, Task
from pretrained.vision import _nms


def _task() -> Task:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()

    def solve(given: Mapping[str, nn.Module]) -> str:
        with torch.no_grad():
            few, many = (given["net"](torch.ones(n, 4)) for n in (2, 5))
        return f"{few.shape[0]} {many.shape[0]} {many[0, 0]:.3f}"

    return Task({"net": Part(net)}, solve)


def test_task_is_solved_by_both(tmp_path: Path) -> None:
    outcome = running.solve(_task(), tmp_path)
    assert outcome.expected == outcome.found
    assert outcome.parameters == 4 * 8 + 8 + 8 * 3 + 3
    measured = outcome.measured["net"]
    assert measured.calls == 2
    assert 0 < measured.distance < 1e-6
    assert len(list(tmp_path.rglob("model.py"))) == 2  # one for each shape


def test_other_numbers_are_noticed() -> None:
    a = torch.tensor([3.0, 4.0, float("inf")])
    assert running._distance(a, torch.tensor([3.0, 4.5, float("inf")])) == pytest.approx(0.1)
    for other in (a[:2], torch.tensor([3.0, 4.0, float("nan")])):
        assert running._distance(a, other) == float("inf")
    assert running._distance(torch.tensor([1, 2]), torch.tensor([1, 3])) == float("inf")


def test_missing_package_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    import real_models
    from pretrained.task import folder_of

    def load() -> Task:
        raise FileNotFoundError(folder_of("no_such_package"))

    assert real_models.run("x", Case("no-such-package==1", load, system="fonts"))
    assert "pip install --no-deps no-such-package==1; apt install fonts" in capsys.readouterr().out


def test_suppression_of_overlapping_boxes() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30], [0, 0, 10, 10]])
    scores, groups = torch.tensor([0.8, 0.9, 0.5, 0.7]), torch.tensor([0, 0, 0, 1])
    assert _nms(boxes, scores, groups, 0.5).tolist() == [1, 3, 2]
