"""Text from a converted model."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from torch2mlx.cli.options import Json, Trust
from torch2mlx.cli.output import show

__all__ = ["generate"]


def generate(
    folder: Annotated[str, typer.Argument(metavar="DST", help="An MLX folder.")],
    prompt: Annotated[str, typer.Option("-p", "--prompt", help="The prompt; - reads stdin.")] = "",
    sound: Annotated[
        str | None,
        typer.Option(help="For a model of speech: a .wav file, or features in .npy."),
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="Spoken in the sound: de, german ... Default: it listens.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="transcribe, or translate to English.")] = None,
    max_tokens: Annotated[int, typer.Option("-m", "--max-tokens", help="Longest answer.")] = 100,
    temperature: Annotated[float, typer.Option("--temp", help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="For sampling.")] = 0,
    raw: Annotated[bool, typer.Option("--raw", help="Do not apply the chat template.")] = False,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Generate text with a converted model."""
    from torch2mlx import api

    text = sys.stdin.read() if prompt == "-" else prompt
    result = api.generate(
        folder,
        text,
        sound=sound,
        language=language,
        task=task,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        raw=raw,
        trust_remote_code=trust_remote_code,
        on_text=None if as_json else lambda part: print(part, end="", flush=True),  # noqa: T201
    )
    for note in result.notes:
        typer.echo(f"\n{note}", err=True)
    show(result, as_json)
