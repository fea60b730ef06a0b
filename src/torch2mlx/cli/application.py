"""The application: its commands in the order of a conversion's life, and what surrounds them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from torch2mlx import __version__
from torch2mlx.cli.conversion import convert
from torch2mlx.cli.evidence import bench, report, upload
from torch2mlx.cli.generation import generate
from torch2mlx.cli.guidance import doctor, inspect, plan
from torch2mlx.cli.leftovers import clean
from torch2mlx.cli.output import show_error
from torch2mlx.cli.verification import verify
from torch2mlx.errors import OptionError

__all__ = ["app"]

_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # of the parser that typer carries


class _Commands(TyperGroup):
    """Ends quietly where the user or the reader of a pipe wants no more; usage errors as JSON."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except KeyboardInterrupt as stop:
            text = str(stop) or "interrupted; nothing was left behind"
            if "--json" in sys.argv[1:]:
                show_error("KeyboardInterrupt", text)
            else:
                typer.echo(text, err=True)
            raise typer.Exit(130) from None
        except _UsageError as error:
            if "--json" not in sys.argv[1:]:
                raise
            message = getattr(error, "format_message", error.__str__)()
            raise OptionError(message) from None
        except BrokenPipeError:
            # Python flushes once more when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        return result


app = typer.Typer(
    cls=_Commands,
    name="torch2mlx",
    help="Convert PyTorch models to MLX, proven equal to the original, in bounded memory.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"torch2mlx {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


_COMMANDS: dict[Callable[..., None], list[str]] = {  # → examples
    inspect: ["torch2mlx inspect HuggingFaceTB/SmolLM2-135M-Instruct"],
    plan: ["torch2mlx plan ./SmolLM2-135M --fit 16GB --context 4096"],
    convert: [
        "torch2mlx convert ./SmolLM2-135M ./smollm2-4bit -q --q-bits 4",
        "torch2mlx convert ./SmolLM2-135M ./smollm2-fits -q --fit 1GB --context 4096",
        "torch2mlx convert ./SmolLM2-135M ./smollm2-good -q --calibrate --max-kl 0.2 --auto",
        "torch2mlx convert ./gemma ./gemma-fp16 --dtype float16 --runtime-precision auto",
    ],
    verify: ["torch2mlx verify ./SmolLM2-135M ./smollm2-4bit"],
    generate: ["torch2mlx generate ./smollm2-4bit --prompt 'Why is the sky blue?'"],
    bench: ["torch2mlx bench ./smollm2-4bit --torch ./SmolLM2-135M --repeats 5"],
    report: ["torch2mlx report ./smollm2-4bit ./smollm2-8bit --out report.html"],
    upload: ["torch2mlx upload ./smollm2-4bit me/SmolLM2-4bit --dry-run"],
    doctor: ["torch2mlx doctor ./smollm2-4bit --fix"],
    clean: ["torch2mlx clean ./models --yes"],
}

for _command, _examples in _COMMANDS.items():
    _separator = "  " if len(_examples) == 1 else "\n\n"
    app.command(epilog=_separator.join(["Example:", *_examples]))(_command)
