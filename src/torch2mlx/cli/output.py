"""What a command prints or writes: results on stdout or into a file, progress on stderr."""

from __future__ import annotations

import json
from typing import Any

import typer

from torch2mlx.errors import OptionError

__all__ = ["progress_bars", "show", "show_error", "write_json"]


def progress_bars(quiet: bool) -> Any:
    """A listener that draws on stderr, or one that is silent."""
    if quiet:
        from torch2mlx.progress import Silent

        return Silent()
    from torch2mlx.reporting.terminal import Bars

    return Bars()


def show(result: Any, as_json: bool) -> None:
    """Print a result: its `to_dict` as JSON, or its table."""
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2, ensure_ascii=False))
        return
    from torch2mlx.reporting.tables import render

    render(result)


def show_error(kind: str, message: str) -> None:
    """Print what ended a command, as JSON."""
    typer.echo(json.dumps({"error": {"type": kind, "message": message}}, indent=2))


def write_json(path: str, result: Any) -> None:
    """Write a result into the file that --out names."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise OptionError(f"--out {path}: cannot be written: {error.strerror or error}") from error
