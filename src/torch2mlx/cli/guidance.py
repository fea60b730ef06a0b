"""What to know and choose before a conversion, and what is wrong afterwards."""

from __future__ import annotations

from typing import Annotated

import typer

from torch2mlx import without_torch
from torch2mlx.cli.options import Json, MemoryLimit, Original, Revision, Trust
from torch2mlx.cli.output import show, write_json

__all__ = ["doctor", "inspect", "plan"]


def inspect(
    source: Original,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Say what a checkpoint is and what could go wrong, from headers alone."""
    from torch2mlx import api

    if not trust_remote_code:
        without_torch.leave_out()
    show(
        api.inspect(source, revision=revision, trust_remote_code=trust_remote_code), as_json=as_json
    )


def plan(
    source: Original,
    fit: Annotated[
        str | None,
        typer.Option(help="Memory that the model may take, e.g. 16GB.", show_default=False),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(help="Tokens of the longest text.", show_default="config.json's, up to 8192"),
    ] = None,
    memory_limit: MemoryLimit = "1GB",
    quality: Annotated[
        bool,
        typer.Option(
            "--quality", help="Predict what each way costs this model: reads and runs its layers."
        ),
    ] = False,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="The way that the plan orders, by its name.", show_default="the recommended one"
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="Write the plan into this file, for convert --plan.", show_default=False),
    ] = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Compare ways to convert a checkpoint: size, memory, quality and the Macs that run it."""
    from torch2mlx import api
    from torch2mlx.compiler.route import is_program

    if not (trust_remote_code or quality or is_program(source)):
        without_torch.leave_out()
    result = api.plan(
        source,
        fit=fit,
        context=context,
        memory_limit=memory_limit,
        quality=quality,
        strategy=strategy,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    if out is not None:
        write_json(out, result)
    show(result, as_json)


def doctor(
    folder: Annotated[
        str | None,
        typer.Argument(metavar="[DST]", help="An MLX folder; without it, this machine."),
    ] = None,
    fix: Annotated[
        bool,
        typer.Option("--fix", help="Mend what is safe to mend; changed files keep a .bak copy."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Find what is wrong with an MLX folder, or with this machine: symptom, cause, cure.

    Exits with 8 where something is wrong and was not mended.
    """
    from torch2mlx import api

    result = api.doctor(folder, fix=fix)
    show(result, as_json)
    if not result.healthy:
        raise typer.Exit(8)
