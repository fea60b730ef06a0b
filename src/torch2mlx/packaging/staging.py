"""A folder that either appears finished under its name or not at all.

Everything is written into a hidden folder beside the destination, on the same file system, so
that one rename publishes it.  No loader globs the hidden name, and whatever goes wrong before
the rename, Ctrl-C included, leaves the destination and its surroundings as they were.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from torch2mlx.errors import DestinationError

__all__ = ["Staging", "check_destination"]

_MARK = ".torch2mlx-"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


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

        with Staging("models/out", needed_bytes=plan.nbytes) as staging:
            write_everything(staging.folder)
            staging.publish()

    Left without `publish`, or with an exception, everything that was written or created is
    removed.  Folders that a killed run left for the same destination are removed on entry; a
    run that is still alive holds a lock on its own.

    Args:
        destination: folder to create; missing parents are created too.
        needed_bytes: room that the output needs, checked before the first byte is written.

    Raises:
        DestinationError: the destination exists, cannot be created, or has no room; also in
            place of an OSError that says, while the block runs, that the disk is full.
    """

    def __init__(self, destination: str | Path, needed_bytes: int = 0) -> None:
        self.destination = check_destination(destination)
        self.needed_bytes = needed_bytes
        # Room is left for the suffix: file systems allow 255 bytes a name.
        stem = os.fsdecode(os.fsencode(self.destination.name)[:200])
        self._prefix = f".{stem}{_MARK}"
        self.folder = self.destination.parent / f"{self._prefix}{secrets.token_hex(6)}"
        self._created: list[Path] = []
        self._lock: int | None = None
        self._published = False

    def __enter__(self) -> Staging:
        try:
            self._create()
        except BaseException as error:
            self._remove()
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
        self._remove()
        full = _out_of_room(error)
        if full is not None and not isinstance(error, DestinationError):
            raise DestinationError(self._no_room(full)) from error

    def publish(self) -> Path:
        """Force everything to disk and give the folder its name, in one atomic rename.

        Returns:
            The absolute path of the destination.

        Raises:
            DestinationError: the data could not be written back, or somebody else created the
                destination meanwhile; the staging folder is removed.
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
            if not self._published:
                self._remove()
            text = (
                self._no_room(error)
                if error.errno in _NO_ROOM
                else f"destination {self.destination} cannot be published: "
                f"{error.strerror or error} ({error.filename})"
            )
            raise DestinationError(text) from error
        except DestinationError:
            self._remove()
            raise
        return self.destination

    def _create(self) -> None:
        parent = self.destination.parent
        missing = [p for p in (parent, *parent.parents) if not p.exists()]
        self._check_room(_existing_parent(self.destination))
        for path in reversed(missing):
            try:
                path.mkdir()
            except FileExistsError:  # made by another process since
                continue
            self._created.append(path)
        # Under the parent's lock no other run takes a folder for abandoned that is about to be
        # locked by its owner.
        guard = _lock(parent, wait=True)
        try:
            self._remove_abandoned(parent)
            self._check_room(parent)
            self.folder.mkdir()
            self._lock = _lock(self.folder)
        finally:
            if guard is not None:
                os.close(guard)

    def _check_room(self, folder: Path) -> None:
        free = shutil.disk_usage(folder).free
        if self.needed_bytes > free:
            raise DestinationError(
                f"destination {self.destination}: no room: the output needs "
                f"{_size(self.needed_bytes)}, the disk has {_size(free)} free; free some space "
                "or choose a destination on another disk"
            )

    def _no_room(self, error: OSError) -> str:
        place = f" at {error.filename}" if error.filename else ""
        return (
            f"destination {self.destination}: the disk became full while writing{place} "
            f"({error.strerror or error}); nothing was kept; free some space or choose a "
            "destination on another disk"
        )

    def _remove_abandoned(self, parent: Path) -> None:
        """Remove what killed runs left: folders of our name that nobody has locked."""
        for path in list(parent.iterdir()):
            if not path.name.startswith(self._prefix) or path.is_symlink() or not path.is_dir():
                continue
            if len(path.name) != len(self.folder.name):
                continue
            lock = _lock(path)
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)

    def _remove(self) -> None:
        """Undo everything; after `publish` only the lock is left to release."""
        if not self._published:
            try:
                shutil.rmtree(self.folder, ignore_errors=True)
            except KeyboardInterrupt:  # a second Ctrl-C: finish, then stop
                shutil.rmtree(self.folder, ignore_errors=True)
                raise
            finally:
                while self._created:
                    folder = self._created.pop()
                    if not self.folder.exists():
                        _remove_if_empty(folder)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:  # somebody else uses it by now
        return


def _lock(folder: Path, wait: bool = False) -> int | None:
    """A descriptor that locks the folder, or None: another process has locked it (without
    `wait`), or its file system has no locks.

    The lock ends with the process, however it ends.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _tree(folder: Path) -> Iterator[Path]:
    """Every file and folder, contents before the folder that holds them."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from _tree(path)
        else:
            yield path
    yield folder


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems refuse to sync folders; the rename is atomic all the same.
        if not (error.errno == errno.EINVAL and path.is_dir()):
            error.filename = str(path)
            raise
    finally:
        os.close(descriptor)


def _out_of_room(error: BaseException | None) -> OSError | None:
    """The error in a chain of causes that says that the disk is full."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
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
