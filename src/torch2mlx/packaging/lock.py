"""The lock on the hidden folder of an unfinished output: one run at a time for a destination."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import socket
from contextlib import suppress
from pathlib import Path

from torch2mlx.errors import DestinationError

__all__ = ["CALIBRATION_FOLDER", "WORK_FOLDER", "Lock", "work_folder"]

WORK_FOLDER = re.compile(r"\.(?P<stem>.+)\.torch2mlx-[0-9a-f]{12}")
"""Names of hidden folders in which outputs are made."""

CALIBRATION_FOLDER = re.compile(r"\.(?P<stem>.+)\.calibration")
"""Names of hidden folders with calibrated layers; see `torch2mlx.calibration.conversion`."""

_LOCK = "lock"
_HELD = (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN)


def work_folder(destination: Path) -> Path:
    """The hidden folder that belongs to a destination, the same in every run."""
    name = os.fsencode(destination.name)
    # Room is left for the suffix: file systems allow 255 bytes a name.
    stem = os.fsdecode(name[:200])
    return destination.parent / f".{stem}.torch2mlx-{hashlib.sha256(name).hexdigest()[:12]}"


class Lock:
    """An exclusive lock that ends with its process, however that ends.

    It is a `flock` on a file in the folder.  Whoever removes the folder holds the lock and
    removes the file last, so a run that gets the lock of a removed file notices and tries again.

    Args:
        folder: is created where it is missing.
        wait: wait for the process that has the lock instead of raising.
    """

    def __init__(self, folder: Path, wait: bool = False) -> None:
        self.folder = folder
        self.path = folder / _LOCK
        self.wait = wait
        self._handle: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object has the lock."""
        return self._handle is not None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            DestinationError: another process has it; names the process.
            OSError: folder or file cannot be created.
        """
        while self._handle is None:
            self.folder.mkdir(exist_ok=True)
            try:
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            except FileNotFoundError:  # removed since by the run that had it
                continue
            try:
                self._lock(handle)
                if not self._is_current(handle):
                    continue
                self._handle = handle
            finally:
                if self._handle is None:
                    os.close(handle)
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def _lock(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if self.wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in _HELD:
                return  # a file system without locks: better an unlocked run than none
            owner = os.pread(handle, 200, 0).decode(errors="replace").strip() or "just started"
            raise DestinationError(
                f"{self.folder}: another run (process {owner}) is at work on this destination; "
                "add --wait to wait for it, or choose another name"
            ) from error

    def _is_current(self, handle: int) -> bool:
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(handle))

    def is_taken(self) -> bool:
        """Whether some process has the lock now."""
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in _HELD
        finally:
            os.close(handle)
        return False

    def remove_folder(self) -> None:
        """Remove the folder with everything in it; the lock stays with this process.

        What cannot be removed stays for the next run to deal with.
        """
        for path in self.folder.iterdir():
            if path == self.path:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()
        with suppress(OSError):  # another run may have created its lock there by now
            self.path.unlink()
            self.folder.rmdir()

    def release(self) -> None:
        """Let others have the lock."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
