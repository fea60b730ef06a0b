"""Whether a folder is still, or is at all, what PyTorch computes."""

from __future__ import annotations

from typing import Annotated

import typer

from torch2mlx.cli.options import Adapter, Experts, Json, Quiet, Revision, TextOnly, Trust
from torch2mlx.cli.output import progress_bars, show
from torch2mlx.errors import OptionError

__all__ = ["verify"]


def verify(
    source: Annotated[
        str,
        typer.Argument(metavar="SRC", help="The PyTorch original; the folder with --certificate."),
    ],
    folder: Annotated[
        str | None,
        typer.Argument(metavar="DST", help="An MLX folder, from any tool.", show_default=False),
    ] = None,
    certificate: Annotated[
        bool,
        typer.Option(
            "--certificate",
            help="Check one converted folder against its certificate: no source, no PyTorch.",
        ),
    ] = False,
    adapter: Adapter = None,
    expert_layout: Experts = None,
    text_only: TextOnly = False,
    memory_limit: Annotated[
        str, typer.Option(help="Memory beside one block of the model.")
    ] = "1GB",
    max_context: Annotated[
        int | None, typer.Option(help="Check only so many tokens.", show_default=False)
    ] = None,
    trust_remote_code: Trust = False,
    revision: Revision = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare an MLX folder, from this or any other tool, with its PyTorch source.

    With --certificate, compare a converted folder with what was recorded when it was made.
    """
    from torch2mlx import api

    if certificate:
        if folder is not None:
            raise OptionError("--certificate takes one folder: torch2mlx verify DST --certificate")
        check = api.verify_certificate(source, trust_remote_code=trust_remote_code)
        show(check, as_json)
        if not check.passed:
            raise typer.Exit(8)
        return
    if folder is None:
        raise OptionError("DST is missing: torch2mlx verify SRC DST, or verify DST --certificate")
    result = api.verify(
        source,
        folder,
        adapter=adapter,
        expert_layout=expert_layout.value if expert_layout else None,
        text_only=text_only,
        memory_limit=memory_limit,
        max_context=max_context,
        trust_remote_code=trust_remote_code,
        revision=revision,
        progress=progress_bars(quiet),
    )
    show(result, as_json)
    if not result.passed:
        raise typer.Exit(8)
