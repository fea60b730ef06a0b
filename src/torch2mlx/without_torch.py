"""Commands that compute nothing in PyTorch, in a process that does not load it.

transformers imports PyTorch wherever it finds it, even to read a configuration: seconds of
processor time and 200 MB.  A process of the command line hides it from transformers, which then
reads configurations and tokenizers all the same.  If it is needed after all, for instance to
generate a port, the process starts again with it; until then nothing has been written.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

__all__ = ["allow", "is_left_out", "leave_out", "require", "start_again"]

_NEEDED = "TORCH2MLX_NEEDS_TORCH"  # in the environment of a process that was started again
_own_process = False


def allow() -> None:
    """Declare that this process runs one command and ends; others share it with their caller."""
    global _own_process
    _own_process = True


def leave_out() -> None:
    """Hide PyTorch from whatever is imported from now on, where that is allowed."""
    several = os.environ.get("WORLD_SIZE", "1") != "1"  # processes talk through torch's store
    if _own_process and not several and _NEEDED not in os.environ and "torch" not in sys.modules:
        sys.modules["torch"] = None  # type: ignore[assignment]
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def is_left_out() -> bool:
    """Whether PyTorch is hidden in this process."""
    return "torch" in sys.modules and sys.modules["torch"] is None


def require() -> None:
    """Raise the ImportError that starts this process again, if PyTorch is hidden in it."""
    if is_left_out():
        raise ModuleNotFoundError("PyTorch is left out of this process", name="torch")


def start_again() -> NoReturn:
    """Run the same command anew, with PyTorch."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    command = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, command, os.environ | {_NEEDED: "1"})
