"""A folder that either appears finished under its name or not at all.

Everything is written into a hidden folder beside the destination, on the same file system, so
that one rename publishes it:

    .out.torch2mlx-6c0b1a3f52d7/      named after the destination
        lock                          locked while a run lives
        journal                       what is finished (see `torch2mlx.conversion.journal`)
        output/                       becomes the destination

No loader globs the hidden name.  A run that is stopped keeps the folder if something in it is
finished, and the next run for the same destination goes on there; every other end removes it.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from torch2mlx.conversion.journal import Journal, sync
from torch2mlx.conversion.records import FileRecord
from torch2mlx.errors import (
    DestinationError,
    NumericError,
    OptionError,
    ParityError,
    PlanError,
    Torch2MLXError,
    UnsupportedError,
)
from torch2mlx.packaging.lock import Lock, work_folder

__all__ = ["Staging", "check_destination", "disk_errors_told"]

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_DISK = (*_NO_ROOM, errno.EIO, errno.EROFS, errno.EFBIG, errno.ESTALE, errno.ENODEV)

# After these another run of the same command would end the same way.
_VERDICTS = (NumericError, OptionError, ParityError, PlanError, UnsupportedError)


def check_destination(destination: str | Path) -> Path:
    """The absolute path of a destination that does not exist yet.

    Symbolic links in its parents are followed, so the result stays right after a change of
    the working directory.

    Raises:
        DestinationError: something is there already (an empty folder and a dangling link
            count), or a parent is no folder.
    """
    path = Path(destination)
    if path.name in ("", ".."):
        path = path.resolve()
    try:
        path = path.parent.resolve() / path.name
        path.lstat()
        exists = True
    except (FileNotFoundError, NotADirectoryError):
        exists = False
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DestinationError(
            f"destination {str(destination)!r}: {reason}; choose another name"
        ) from error
    if exists:
        raise DestinationError(
            f"destination {path} exists already, and nothing is ever overwritten; "
            f"{_remedy(path)} or choose another name"
        )
    parent = _existing_parent(path)
    if not parent.is_dir():
        raise DestinationError(
            f"destination {path}: {parent} is a file, not a folder; choose another place"
        )
    return path


def _remedy(path: Path) -> str:
    if path.is_symlink():
        return "it is a symbolic link: remove it"
    if path.is_dir() and not any(path.iterdir()):
        return f"it is an empty folder: remove it (rmdir {path})"
    return "remove it"


def _existing_parent(path: Path) -> Path:
    return next(p for p in path.parents if os.path.lexists(p))


class Staging:
    """The folder in which an output is built; `publish` gives it its name.

        with Staging("models/out", identity=identity) as staging:
            staging.require_room(plan.nbytes)
            write_everything(staging.folder, staging.journal)
            staging.publish()

    Left without `publish`, what was written or created is removed, unless the journal holds
    finished files and the run was stopped rather than refused: by Ctrl-C, a full disk, an
    unreadable source or a defect of this program.

    Args:
        destination: folder to create; missing parents are created too.
        identity: what the output is made of, if a later run may go on with it.
        restart: discard what an earlier run finished for another identity.
        wait: wait for another run for the same destination instead of refusing.
        progress: hears of the bytes of finished files that were checked.

    Attributes:
        destination: absolute path.
        work: the hidden folder.
        folder: the folder to fill, inside of it.
        journal: files finished by this run and those before; None without an identity.

    Raises:
        DestinationError: the destination exists, cannot be created, is in use by another run,
            or was begun from something else; also in place of an OSError that says, while the
            block runs, that the disk is full or fails.
    """

    def __init__(
        self,
        destination: str | Path,
        *,
        identity: Mapping[str, Any] | None = None,
        restart: bool = False,
        wait: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.destination = check_destination(destination)
        self.work = work_folder(self.destination)
        self.folder = self.work / "output"
        self.journal: Journal | None = None
        self._identity = identity
        self._restart = restart
        self._progress = progress
        self._created: list[Path] = []
        self._lock = Lock(self.work, wait)
        self._published = False

    def __enter__(self) -> Staging:
        try:
            self._create()
        except BaseException as error:
            # What an earlier run left stays as it was; an own folder holds nothing yet.
            self._release(keep=self._lock.held and (self.work / "journal").exists())
            if isinstance(error, OSError):
                raise DestinationError(
                    f"destination {self.destination} cannot be written: "
                    f"{error.strerror or error} ({error.filename}); choose another place or "
                    "change its permissions"
                ) from error
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        kept = self._finished() if error is not None and not isinstance(error, _VERDICTS) else 0
        self._release(keep=bool(kept))
        hint = _kept(kept)
        if isinstance(error, KeyboardInterrupt) and kept and not (self._published or str(error)):
            raise KeyboardInterrupt(f"interrupted; {hint}") from None
        if isinstance(error, DestinationError) and kept and _CLEAN not in str(error):
            raise DestinationError(f"{error}; {hint}") from error
        failure = _disk_error(error)
        if failure is not None and not isinstance(error, DestinationError):
            raise DestinationError(f"{_told(self.destination, failure)}; {hint}") from error

    def records(self) -> dict[str, FileRecord]:
        """Size and hash of the finished files of the output, by their name in `folder`."""
        start = f"{self.folder.name}/"
        finished = self.journal.finished.items() if self.journal else ()
        return {n.removeprefix(start): record for n, record in finished if n.startswith(start)}

    def announce(self, other: Path) -> None:
        """Record that `other`, an output of the same run, is about to be published."""
        assert self.journal is not None
        marker = self._marker(other)
        marker.parent.mkdir(exist_ok=True)
        marker.touch()
        self.journal.finish(marker)

    def announced(self, other: Path) -> bool:
        """Whether an earlier run published `other` and was stopped before this output."""
        return self.journal is not None and self.journal.knows(self._marker(other))

    def _marker(self, other: Path) -> Path:
        return self.work / "published" / other.name

    def require_room(self, nbytes: int) -> None:
        """Check that the disk has room for an output.

        Args:
            nbytes: of the whole output; what is finished already counts as there.

        Raises:
            DestinationError: it has not.
        """
        needed = nbytes - sum(record.size for record in self.records().values())
        free = shutil.disk_usage(self.work).free
        if needed > free:
            raise DestinationError(
                f"destination {self.destination}: no room: the output needs {_size(needed)}, the "
                f"disk has {_size(free)} free; free some space or choose a destination on another "
                "disk"
            )

    def publish(self) -> Path:
        """Force everything to disk and give the folder its name, in one atomic rename.

        Returns:
            The absolute path of the destination.

        Raises:
            DestinationError: the data could not be written back, or somebody else created the
                destination meanwhile.
        """
        try:
            for path in _tree(self.folder):
                _sync(path)
            # POSIX lets a folder replace an empty folder, so emptiness is no excuse here.
            check_destination(self.destination)
            os.rename(self.folder, self.destination)  # noqa: PTH104
            self._published = True
            _sync(self.destination.parent)
        except OSError as error:
            raise DestinationError(_told(self.destination, error)) from error
        return self.destination

    def _create(self) -> None:
        parent = self.destination.parent
        missing = [p for p in (parent, *parent.parents) if not p.exists()]
        for path in reversed(missing):
            try:
                path.mkdir()
            except FileExistsError:  # made by another process since
                continue
            self._created.append(path)
        self._lock.acquire()
        check_destination(self.destination)  # made while this run waited
        if self._identity is not None:
            self.journal = Journal(
                self.work, self._identity, restart=self._restart, progress=self._progress
            )
        self._remove_unfinished()
        self.folder.mkdir(exist_ok=True)

    def _finished(self) -> int:
        return len(self.journal.finished) if self.journal else 0

    def _remove_unfinished(self) -> None:
        """Remove what no journal of this run vouches for."""
        kept = {self._lock.path}
        if self.journal:
            kept |= {self.journal.path, *(self.work / name for name in self.journal.finished)}
        for path in list(_tree(self.work))[:-1]:
            if path in kept:
                continue
            if path.is_dir() and not path.is_symlink():
                _remove_if_empty(path)
            else:
                path.unlink()

    def _release(self, keep: bool) -> None:
        """Remove everything, unless it is kept or published, and let go of the lock."""
        if self.journal is not None:
            self.journal.close()
        if self._published:
            self._created.clear()
        if self._lock.held:
            if not keep or self._published:
                self._lock.remove_folder()
            self._lock.release()
        while self._created:
            _remove_if_empty(self._created.pop())


_CLEAN = "`torch2mlx clean`"


def _kept(count: int) -> str:
    if not count:
        return "nothing was kept"
    files = "1 finished file is" if count == 1 else f"{count} finished files are"
    return f"{files} kept: the same command goes on from there, {_CLEAN} removes what was left"


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:  # somebody else uses it by now
        return


def _tree(folder: Path) -> Iterator[Path]:
    """Every file and folder, contents before the folder that holds them."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from _tree(path)
        else:
            yield path
    yield folder


def _sync(path: Path) -> None:
    try:
        sync(path)
    except OSError as error:
        # Some file systems refuse to sync folders; the rename is atomic all the same.
        if not (error.errno == errno.EINVAL and path.is_dir()):
            raise


@contextmanager
def disk_errors_told(destination: Path) -> Iterator[None]:
    """Say in a DestinationError that the disk is full or fails, where nothing else does.

    Args:
        destination: beside which the block writes files that a later run takes over.
    """
    try:
        yield
    except Exception as error:
        failure = _disk_error(error)
        if failure is None or isinstance(error, Torch2MLXError):
            raise
        raise DestinationError(
            f"{_told(destination, failure)}; the same command goes on from what is finished"
        ) from error


def _told(destination: Path, error: OSError) -> str:
    place = f" at {error.filename}" if error.filename else ""
    reason = error.strerror or error
    if error.errno in _NO_ROOM:
        return (
            f"destination {destination}: the disk became full while writing{place} "
            f"({reason}); free some space or choose a destination on another disk"
        )
    return f"destination {destination} cannot be written{place}: {reason}"


def _disk_error(error: BaseException | None) -> OSError | None:
    """The error in a chain of causes that says that the disk is full or fails."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _DISK:
            return error
        error = error.__cause__ or error.__context__
    return None


def _size(count: int) -> str:
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
