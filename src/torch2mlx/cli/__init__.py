"""The command line: thin commands over `torch2mlx.api`, a module for each concern.

Results go to stdout (tables, or JSON with --json), progress and errors to stderr.  A user's
mistake ends in one message and an exit code of its own (`torch2mlx.errors`), never a traceback.
"""

from __future__ import annotations

from torch2mlx.cli.application import app
from torch2mlx.cli.process import main, run

__all__ = ["app", "main", "run"]
