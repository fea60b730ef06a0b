"""What stopped runs leave is found and told apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from torch2mlx.calibration.conversion import calibration_folder
from torch2mlx.errors import DestinationError
from torch2mlx.packaging.leftovers import find_leftovers
from torch2mlx.packaging.lock import Lock, work_folder


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    folder = calibration_folder(tmp_path / "out")
    for step in ("layer-00000", "layer-00001", "layer-00002.partial", "embedding"):
        (folder / "layers" / step).mkdir(parents=True)
    (folder / "layers" / "layer-00000" / "weights.safetensors").write_bytes(bytes(10_000))
    (folder / "lock").touch()
    return folder


def test_calibrated_layers(tmp_path: Path, calibration: Path) -> None:
    for place in (tmp_path, tmp_path / "out"):
        (found,) = find_leftovers(place)
        assert (found.path, found.destination) == (calibration, tmp_path / "out")
        assert (found.calibration, found.finished, found.in_use) == (True, 2, False)
        assert found.size >= 10_000
        assert "2 calibrated layers" in found.describe()
    assert found.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_run_at_work_keeps_its_folder(tmp_path: Path, calibration: Path) -> None:
    lock = Lock(calibration)
    lock.acquire()
    (found,) = find_leftovers(tmp_path)
    assert found.in_use
    assert not found.remove()
    assert (calibration / "layers").is_dir()
    lock.release()


def test_both_folders_of_a_destination(tmp_path: Path, calibration: Path) -> None:
    work = work_folder(tmp_path / "out")
    work.mkdir()
    assert {x.path for x in find_leftovers(tmp_path / "out")} == {calibration, work}
    assert {x.path for x in find_leftovers(tmp_path)} == {calibration, work}


def test_other_hidden_folders_are_none(tmp_path: Path) -> None:
    (tmp_path / ".camera.calibration").mkdir()  # without a lock: somebody else's
    (tmp_path / ".git").mkdir()
    (tmp_path / ".out.calibration").symlink_to(tmp_path / ".git")
    assert find_leftovers(tmp_path) == []
    with pytest.raises(DestinationError):
        find_leftovers(tmp_path / "camera")
