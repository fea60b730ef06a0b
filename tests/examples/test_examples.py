"""Every example runs to its comparison, with two steps of training and no picture."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import mlx.core as mx
import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("vit", 1),
        pytest.param("seq2seq", 2, marks=pytest.mark.slow),
        pytest.param("cvae", 4, marks=pytest.mark.slow),
        pytest.param("realnvp", 4, marks=pytest.mark.slow),
        pytest.param("resnet", 1, marks=pytest.mark.slow),
        pytest.param("unet", 1, marks=pytest.mark.slow),
    ],
)
def test_example(
    name: str,
    outputs: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--steps", "2", "--no-picture", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    found = [float(x) for x in re.findall(r"relative L2 (\S+)", capsys.readouterr().out)]
    assert len(found) == outputs
    assert 0 < max(found) < 1e-4  # zero: compared with itself
    assert list((tmp_path / "out").rglob("model.py"))


def test_comparison_fails_for_other_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    from side_by_side import compare

    numbers = torch.arange(1.0, 5.0)
    compare("close", numbers, mx.array([1.0, 2.0, 3.0, 4.0001]))
    assert "relative L2 1.8e-05" in capsys.readouterr().out
    for other in ([1.0, 2.0, 3.0, 4.01], [1.0, 2.0, 3.0, float("nan")], [1.0, 2.0, 3.0]):
        with pytest.raises(SystemExit):
            compare("other", numbers, mx.array(other))


def test_drawings_show_what_they_say() -> None:
    import digits
    import shapes

    torch.manual_seed(0)
    images, labels = digits.draw(64)
    assert images.shape == (64, 1, 28, 28)
    ink = images.mean((1, 2, 3))
    assert 0.05 < float(ink.min()) < float(ink.max()) < 0.45
    assert float(ink[labels == 1].mean()) < float(ink[labels == 8].mean())
    pictures, kinds, masks = shapes.draw(64)
    assert 0 <= float(pictures.min()) < float(pictures.max()) <= 1
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert float(masks[kinds == 4].mean()) < float(masks[kinds == 0].mean())  # cross, circle
