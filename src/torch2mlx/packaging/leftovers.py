"""What stopped conversions left beside their destinations."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch2mlx.conversion.journal import read_finished
from torch2mlx.errors import DestinationError
from torch2mlx.packaging.lock import CALIBRATION_FOLDER, WORK_FOLDER, Lock, work_folder

__all__ = ["Leftover", "find_leftovers"]


@dataclass(frozen=True)
class Leftover:
    """The hidden folder of a conversion that did not end.

    Attributes:
        path: of the folder.
        destination: what it was to become (the start of the name, where that is very long).
        size: bytes on the disk.
        finished: number of finished files, or calibrated layers, that the next run would take over.
        age: seconds since something in it changed.
        in_use: a run is at work in it.
        calibration: it holds calibrated layers instead of files of the output.
    """

    path: Path
    destination: Path
    size: int
    finished: int
    age: float
    in_use: bool
    calibration: bool = False

    def describe(self) -> str:
        """One line."""
        kind = "calibrated layers" if self.calibration else "finished files"
        state = "in use" if self.in_use else f"{self.finished} {kind}"
        return (
            f"{self.destination}: {self.size / 1e9:.2f} GB, {state}, "
            f"last changed {self.age / 3600:.1f} h ago ({self.path.name})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "path": str(self.path), "destination": str(self.destination)}

    def remove(self) -> bool:
        """Remove the folder; False if a run has taken it up meanwhile."""
        lock = Lock(self.path)
        try:
            lock.acquire()
        except DestinationError:
            return False
        lock.remove_folder()
        lock.release()
        return not self.path.exists()


def find_leftovers(place: str | Path) -> list[Leftover]:
    """Hidden folders in a folder, or those that belong to a destination.

    Raises:
        DestinationError: `place` is neither a folder nor the name of an unfinished output.
    """
    path = Path(place).expanduser()
    absolute = path.absolute()
    own = [work_folder(absolute), absolute.parent / f".{path.name}.calibration"]
    found = [leftover for folder in own if (leftover := _leftover(folder))]
    if found:
        return found
    if not path.is_dir():
        raise DestinationError(
            f"{path}: no such folder, and no unfinished output of that name beside it"
        )
    return [leftover for folder in sorted(path.iterdir()) if (leftover := _leftover(folder))]


def _leftover(path: Path) -> Leftover | None:
    """What a folder is, if it is one that a conversion makes."""
    if path.is_symlink() or not path.is_dir():
        return None
    if match := WORK_FOLDER.fullmatch(path.name):
        return _describe(path, match["stem"], len(read_finished(path)))
    match = CALIBRATION_FOLDER.fullmatch(path.name)
    # Others might choose such a name too, but hardly with a lock in it.
    if match and (path / "lock").is_file():
        layers = sum(1 for step in path.glob("layers/layer-*") if step.suffix != ".partial")
        return _describe(path, match["stem"], layers, calibration=True)
    return None


def _describe(path: Path, stem: str, finished: int, calibration: bool = False) -> Leftover:
    files = [p.stat(follow_symlinks=False) for p in path.rglob("*") if not p.is_dir()]
    return Leftover(
        path=path,
        destination=path.parent / stem,
        size=sum(found.st_blocks * 512 for found in files),
        finished=finished,
        age=max(0.0, time.time() - max((f.st_mtime for f in files), default=time.time())),
        in_use=Lock(path).is_taken(),
        calibration=calibration,
    )
