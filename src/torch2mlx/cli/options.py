"""Arguments, options and their choices that several commands share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

__all__ = [
    "Adapter",
    "ExpertLayout",
    "Experts",
    "FloatType",
    "Folder",
    "Json",
    "MemoryLimit",
    "Mode",
    "Original",
    "Quiet",
    "Revision",
    "Router",
    "TextOnly",
    "Trust",
]


class Mode(StrEnum):
    """Quantization formats of MLX."""

    affine = "affine"
    mxfp4 = "mxfp4"
    nvfp4 = "nvfp4"
    mxfp8 = "mxfp8"


class FloatType(StrEnum):
    """Types of what is not quantized."""

    float16 = "float16"
    bfloat16 = "bfloat16"
    float32 = "float32"


class Router(StrEnum):
    """How the routers of mixture-of-experts models are stored."""

    eight = "8bit"
    keep = "keep"
    same = "same"


class ExpertLayout(StrEnum):
    """How a checkpoint holds gate and up of its experts in one tensor."""

    concatenated = "concatenated"
    interleaved = "interleaved"
    concatenated_transposed = "concatenated-transposed"
    interleaved_transposed = "interleaved-transposed"


Original = Annotated[
    str, typer.Argument(metavar="SRC", help="A folder, a file, a hub id or a URL.")
]
Folder = Annotated[str, typer.Argument(metavar="DST", help="A converted folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Allow code that the checkpoint brings to run.")
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a hub id.", show_default=False)
]
Adapter = Annotated[
    str | None,
    typer.Option(
        help="Folder of a LoRA or DoRA adapter (PEFT, mlx-lm) to merge in.", show_default=False
    ),
]
Experts = Annotated[
    ExpertLayout | None,
    typer.Option(
        "--expert-layout",
        help="How experts.gate_up_proj lies, where the checkpoint differs from its family.",
        show_default=False,
    ),
]
TextOnly = Annotated[
    bool,
    typer.Option("--text-only", help="Of a multimodal checkpoint, the language model alone."),
]
MemoryLimit = Annotated[str, typer.Option(help="Memory of the conversion itself.")]
