"""What to show of a result: speed, a page about it, and the hub."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from torch2mlx.cli.options import Folder, Json, Quiet, Trust
from torch2mlx.cli.output import progress_bars, show, write_json
from torch2mlx.errors import OptionError

__all__ = ["bench", "report", "upload"]


def bench(
    folders: Annotated[
        list[str], typer.Argument(metavar="FOLDER...", help="MLX folders to compare.")
    ],
    torch: Annotated[
        str | None,
        typer.Option(
            "--torch",
            metavar="SRC",
            help="The original, measured in PyTorch: a checkpoint, package.module:factory or .pt2.",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(help="A file with one prompt a line.", show_default="two of its own"),
    ] = None,
    max_tokens: Annotated[int, typer.Option("-m", "--max-tokens", help="For each prompt.")] = 64,
    repeats: Annotated[int, typer.Option(help="Measured passes, after one that warms up.")] = 5,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Rows of torch.compile beside eager PyTorch's.")
    ] = False,
    size: Annotated[
        list[str] | None,
        typer.Option(
            help="Extent of a module's open axis, as in batch=4; repeatable.", show_default="8"
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="Write the JSON into this file as well.", show_default=False),
    ] = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure speed and memory of MLX folders, and of their original in PyTorch, in one run.

    Every engine has a process of its own.  Exits with 8 where one could not be measured.
    """
    from torch2mlx import api

    result = api.bench(
        folders,
        torch=torch,
        prompts=prompts,
        max_tokens=max_tokens,
        repeats=repeats,
        compile=compiled,
        sizes=tuple(size or ()),
        trust_remote_code=trust_remote_code,
        progress=progress_bars(quiet),
    )
    if out is not None:
        write_json(out, result)
    show(result, as_json)
    if not result.complete:
        raise typer.Exit(8)


def report(
    folders: Annotated[
        list[str], typer.Argument(metavar="DST...", help="Converted folders; several are compared.")
    ],
    out: Annotated[
        str | None,
        typer.Option(help="File to write.", show_default="report.html in the folder"),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the report in short, as Markdown.")
    ] = False,
    benchmark: Annotated[
        str | None,
        typer.Option(
            "--bench",
            help="Speed: a file that `torch2mlx bench --json` wrote.",
            show_default="torch2mlx/bench.json in the folder",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a converted folder, or compare several: one HTML page that loads nothing."""
    from torch2mlx import api

    if markdown and as_json:
        raise OptionError("--markdown and --json: choose one")
    result = api.report(*folders, benchmark=benchmark)
    if markdown or as_json:
        plain = json.dumps(result.to_dict(), indent=2, ensure_ascii=False)
        text = result.markdown() if markdown else plain
        if out is None:
            typer.echo(text)
        else:
            typer.echo(f"wrote {result.write(out, text + chr(10) * as_json)}", err=True)
        return
    place = out or (f"{folders[0]}/report.html" if len(folders) == 1 else "report.html")
    typer.echo(f"wrote {result.write(place, result.html())}", err=True)


def upload(
    folder: Folder,
    repository: Annotated[str, typer.Argument(metavar="REPO", help="owner/name on the hub.")],
    private: Annotated[
        bool, typer.Option("--private", help="Create the repository for yourself.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be uploaded; upload nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Upload a converted folder to the Hugging Face hub, if it is still what was proven."""
    from torch2mlx import api

    show(api.upload(folder, repository, private=private, dry_run=dry_run), as_json)
