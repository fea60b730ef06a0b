"""What stopped conversions left."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from torch2mlx.cli.options import Json

__all__ = ["clean"]


def clean(
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Where outputs are made, or one output's name.")
    ] = ".",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    as_json: Json = False,
) -> None:
    """List what stopped conversions left, and remove it.

    With --json nothing is asked: the list is printed, and removed with --yes.
    """
    from torch2mlx.packaging.leftovers import find_leftovers

    found = find_leftovers(folder)
    if not as_json:
        for leftover in found:
            typer.echo(leftover.describe())
        if not found:
            typer.echo("nothing was left here")
    idle = [leftover for leftover in found if not leftover.in_use]
    removed = []
    if idle and (yes or (not as_json and typer.confirm(f"Remove {len(idle)}?"))):
        removed = [leftover for leftover in idle if leftover.remove()]
    if as_json:
        names = {leftover.path for leftover in removed}
        entries = [{**x.to_dict(), "removed": x.path in names} for x in found]
        typer.echo(json.dumps(entries, indent=2, ensure_ascii=False))
