"""What stopped conversions left beside their destinations."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch2mlx.conversion.journal import read_finished
from torch2mlx.errors import DestinationError
from torch2mlx.packaging.lock import WORK_FOLDER, Lock, work_folder

__all__ = ["Leftover", "find_leftovers"]


@dataclass(frozen=True)
class Leftover:
    """The hidden folder of a conversion that did not end.

    Attributes:
        path: of the folder.
        destination: what it was to become (the start of the name, where that is very long).
        size: bytes on the disk.
        finished: number of finished files that the next run would take over.
        age: seconds since something in it changed.
        in_use: a run is at work in it.
    """

    path: Path
    destination: Path
    size: int
    finished: int
    age: float
    in_use: bool

    def describe(self) -> str:
        """One line."""
        state = "in use" if self.in_use else f"{self.finished} finished files"
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
    """Hidden folders in a folder, or the one that belongs to a destination.

    Raises:
        DestinationError: `place` is neither a folder nor the name of an unfinished output.
    """
    path = Path(place).expanduser()
    own = work_folder(path.absolute())
    if own.is_dir():
        return [_describe(own, path.name)]
    if not path.is_dir():
        raise DestinationError(
            f"{path}: no such folder, and no unfinished output of that name beside it"
        )
    matches = [(p, WORK_FOLDER.fullmatch(p.name)) for p in sorted(path.iterdir())]
    return [
        _describe(p, match["stem"]) for p, match in matches if match and not p.is_symlink()
        if p.is_dir()
    ]  # fmt: skip


def _describe(path: Path, stem: str) -> Leftover:
    files = [p.stat(follow_symlinks=False) for p in path.rglob("*") if not p.is_dir()]
    return Leftover(
        path=path,
        destination=path.parent / stem,
        size=sum(found.st_blocks * 512 for found in files),
        finished=len(read_finished(path)),
        age=max(0.0, time.time() - max((f.st_mtime for f in files), default=time.time())),
        in_use=Lock(path).is_taken(),
    )
