"""One run of the command line as a process: exit codes, and a quick end."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from contextlib import suppress
from typing import Any

import typer

from torch2mlx import without_torch
from torch2mlx.cli.application import app
from torch2mlx.cli.output import show_error
from torch2mlx.errors import Torch2MLXError

__all__ = ["main", "run"]


def main() -> None:
    """Entry point: runs a command and turns errors into messages and exit codes."""
    as_json = "--json" in sys.argv[1:]
    try:
        app()
    except Torch2MLXError as error:
        if as_json:
            show_error(type(error).__name__, str(error))
        else:
            typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
            typer.echo(str(error), err=True)
        raise SystemExit(error.exit_code) from None


def run() -> None:
    """`main` as a process of its own, which ends without taking the libraries apart.

    Python frees every object of torch and transformers one by one when it ends: most of a second
    of work, and several seconds after Ctrl-C on a busy machine.
    """
    code: Any = 0
    without_torch.allow()
    # What imports make stays until the end; looking through it for garbage is a tenth of a run.
    gc.set_threshold(100_000)
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    except ImportError as error:
        if error.name != "torch" or not without_torch.is_left_out():
            raise
        without_torch.start_again()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a pipe that nobody reads any more, a closed stream
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
