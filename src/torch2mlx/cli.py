"""The command line: thin commands over `torch2mlx.api`.

Results go to stdout (tables, or JSON with --json), progress and errors to stderr.  A user's
mistake ends in one message and an exit code of its own (`torch2mlx.errors`), never a traceback.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import sys
from contextlib import suppress
from enum import StrEnum
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from torch2mlx import __version__, without_torch
from torch2mlx.errors import OptionError, Torch2MLXError

__all__ = ["app", "main", "run"]


class _Commands(TyperGroup):
    """Ends quietly where the user or the reader of a pipe wants no more."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except KeyboardInterrupt as stop:
            typer.echo(str(stop) or "interrupted; nothing was left behind", err=True)
            raise typer.Exit(130) from None
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


Source = Annotated[
    str | None,
    typer.Argument(
        metavar="SRC",
        help="A folder, a checkpoint file, a hub id, a URL, a .pt2 file or package.module:factory.",
        show_default=False,
    ),
]
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


class ExpertLayout(StrEnum):
    """How a checkpoint holds gate and up of its experts in one tensor."""

    concatenated = "concatenated"
    interleaved = "interleaved"
    concatenated_transposed = "concatenated-transposed"
    interleaved_transposed = "interleaved-transposed"


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


def _progress(quiet: bool) -> Any:
    if quiet:
        from torch2mlx.progress import Silent

        return Silent()
    from torch2mlx.reporting.terminal import Bars

    return Bars()


def _show(result: Any, as_json: bool) -> None:
    """Print a result object: its `to_dict` as JSON, or its table."""
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2, ensure_ascii=False))
        return
    from torch2mlx.reporting.tables import render

    render(result)


@app.command(epilog="Example:  torch2mlx inspect HuggingFaceTB/SmolLM2-135M-Instruct")
def inspect(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A folder, a file, a hub id or a URL.")
    ],
    revision: Revision = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Say what a checkpoint is and what could go wrong, from headers alone."""
    from torch2mlx import api

    _show(
        api.inspect(source, revision=revision, trust_remote_code=trust_remote_code), as_json=as_json
    )


@app.command(epilog="Example:  torch2mlx plan ./SmolLM2-135M --fit 16GB --context 4096")
def plan(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A folder, a file, a hub id or a URL.")
    ],
    fit: Annotated[
        str | None,
        typer.Option(help="Memory that the model may take, e.g. 16GB.", show_default=False),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(help="Tokens of the longest text.", show_default="config.json's, up to 8192"),
    ] = None,
    memory_limit: Annotated[str, typer.Option(help="Memory of the conversion itself.")] = "1GB",
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

    if not (trust_remote_code or quality):
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
        _write_json(out, result)
    _show(result, as_json)


_CONVERT_EXAMPLES = """Example:

torch2mlx convert ./SmolLM2-135M ./smollm2-4bit -q --q-bits 4

torch2mlx convert ./SmolLM2-135M ./smollm2-fits -q --fit 1GB --context 4096

torch2mlx convert ./SmolLM2-135M ./smollm2-good -q --calibrate --max-kl 0.2 --auto

torch2mlx convert ./gemma ./gemma-fp16 --dtype float16 --runtime-precision auto
"""


@app.command(epilog=_CONVERT_EXAMPLES)
def convert(
    source: Source = None,
    destination: Annotated[
        str | None,
        typer.Argument(
            metavar="DST",
            help="Folder to create, here or at a URL (default: mlx_model).",
            show_default=False,
        ),
    ] = None,
    hf_path: Annotated[
        str | None,
        typer.Option(
            "--hf-path",
            "--model",
            "--torch-path",
            help="SRC, as mlx-lm and mlx-examples spell it.",
            show_default=False,
        ),
    ] = None,
    mlx_path: Annotated[
        str | None, typer.Option(help="DST, as mlx-lm spells it.", show_default=False)
    ] = None,
    quantize: Annotated[
        bool, typer.Option("-q", "--quantize", help="Quantize the weights.")
    ] = False,
    q_bits: Annotated[
        int | None, typer.Option(help="Bits a weight: 2, 3, 4, 5, 6 or 8.", show_default="4")
    ] = None,
    q_group_size: Annotated[
        int | None,
        typer.Option(help="Weights that share a scale: 32, 64 or 128.", show_default="64"),
    ] = None,
    q_mode: Annotated[
        Mode | None, typer.Option(help="Quantization format.", show_default="affine")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "--quant-predicate",
            metavar="NAME|FILE",
            help="Bits by layer: mlx-lm's mixed_2_6, mixed_3_4, mixed_3_6 or mixed_4_6, or a .toml "
            "file of patterns and formats.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave modules unquantized, e.g. 'lm_head'; repeatable.", show_default=False
        ),
    ] = None,
    bits: Annotated[
        list[str] | None,
        typer.Option(
            help="Other bits for some modules: '*.down_proj=6', '=6:32' with a group size, or "
            "'=mxfp8' or '=keep'; repeatable, the last match wins.",
            show_default=False,
        ),
    ] = None,
    embedding: Annotated[
        str | None, typer.Option(help="Bits of the embedding, or keep.", show_default=False)
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="Bits of the output head, or keep.", show_default=False)
    ] = None,
    router: Annotated[
        Router | None,
        typer.Option(
            help="Routers of expert layers: 8bit, keep (unquantized) or same (as mlx-lm).",
            show_default="8bit",
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail if the group size does not divide a layer.")
    ] = False,
    target_bpw: Annotated[
        float | None,
        typer.Option(
            help="Bits per weight of the whole model; sensitive modules get more than others.",
            show_default=False,
        ),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(
            help="Memory that the running model may take, e.g. 16GB; each module gets bits for it.",
            show_default=False,
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            help="Tokens of the longest text, for the caches that --fit counts.",
            show_default="config.json's, up to 8192",
        ),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="Choose the quantized values by what the model makes of text."
        ),
    ] = False,
    distill: Annotated[
        bool,
        typer.Option(
            "--distill", help="After --calibrate, tune scales and biases on the predictions."
        ),
    ] = False,
    calibration_text: Annotated[
        list[str] | None,
        typer.Option(
            help="Text to calibrate with: .txt, .md, or .jsonl of texts or chats; for a module "
            "arguments as in --example; repeatable.",
            show_default="texts of the Python installation",
        ),
    ] = None,
    calibration_tokens: Annotated[
        int | None, typer.Option(help="Tokens to calibrate with.", show_default="16384")
    ] = None,
    calibration_samples: Annotated[
        int | None,
        typer.Option(
            help="So many of these tokens are drawn from the model itself, in place of text.",
            show_default=False,
        ),
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(
            help="Publish only if the mean KL divergence from the original is at most this.",
            show_default=False,
        ),
    ] = None,
    min_top1: Annotated[
        float | None,
        typer.Option(
            help="Publish only if so large a share of most likely tokens is the original's.",
            show_default=False,
        ),
    ] = None,
    max_perplexity: Annotated[
        float | None,
        typer.Option(
            help="Publish only if perplexity is at most so many times the original's.",
            show_default=False,
        ),
    ] = None,
    max_loops: Annotated[
        float | None,
        typer.Option(
            help="Publish only if the share of greedy texts that end in a loop is at most so much "
            "above the original's, e.g. 0.05.",
            show_default=False,
        ),
    ] = None,
    auto: Annotated[
        bool,
        typer.Option(
            "--auto",
            help="Where a bound does not hold, try the cheapest cure next, until all bounds do.",
        ),
    ] = False,
    adapter: Adapter = None,
    expert_layout: Experts = None,
    text_only: TextOnly = False,
    dequantize: Annotated[
        bool, typer.Option("-d", "--dequantize", help="Make a plain model of a quantized MLX one.")
    ] = False,
    dtype: Annotated[
        FloatType | None,
        typer.Option(help="Type of what is not quantized.", show_default="config.json's"),
    ] = None,
    runtime_precision: Annotated[
        str | None,
        typer.Option(
            help="Types that modules of the result compute in: 'self_attn=float32,mlp=float16', or "
            "auto, where float16 would overflow.",
            show_default=False,
        ),
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option(help="No weight file is larger than this.")
    ] = "5GB",
    memory_limit: Annotated[str, typer.Option(help="Memory of the conversion itself.")] = "1GB",
    max_context: Annotated[
        int | None,
        typer.Option(
            help="Prove and allow only so many tokens, for ports that are right up to a window.",
            show_default=False,
        ),
    ] = None,
    no_verify: Annotated[
        bool,
        typer.Option("--no-verify", help="Skip the comparison with PyTorch; the manifest says so."),
    ] = False,
    example: Annotated[
        str | None,
        typer.Option(
            help="Arguments of a module's forward, written by torch.save: a tensor, a tuple or a "
            "dict.",
            show_default=False,
        ),
    ] = None,
    dynamic: Annotated[
        list[str] | None,
        typer.Option(
            help="An extent of a module's input that may change: 'x:0=batch', 'x:1=2*length', "
            "'x:0=batch:2..64' with bounds; repeatable.",
            show_default=False,
        ),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            help="A further output from the same pass over the source, as DST-NAME: 8bit, mxfp4, "
            "bf16 ...; repeatable.",
            show_default=False,
        ),
    ] = None,
    plan_file: Annotated[
        str | None,
        typer.Option(
            "--plan",
            help="Carry out exactly what this file of torch2mlx plan says; SRC may be left out.",
            show_default=False,
        ),
    ] = None,
    keep_download: Annotated[
        bool,
        typer.Option(
            "--keep-download", help="Download the weights of a hub id into the hub's cache."
        ),
    ] = False,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart", help="Discard what a stopped run left that was begun from something else."
        ),
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for another run for the same DST to end.")
    ] = False,
    weights: Annotated[
        str | None,
        typer.Option(
            help="A checkpoint with the weights of a module, whose factory then takes no memory "
            "for them.",
            show_default=False,
        ),
    ] = None,
    entry: Annotated[
        list[str] | None,
        typer.Option(
            help="A method of a module with its arguments, as in encode=inputs.pt, in place of "
            "--example; repeatable.",
            show_default=False,
        ),
    ] = None,
    upload_repo: Annotated[
        str | None,
        typer.Option(help="Upload the result to this hub repository.", show_default=False),
    ] = None,
    trust_remote_code: Trust = False,
    revision: Revision = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Convert a checkpoint or a module to MLX and prove that the result equals PyTorch.

    A module is named by what builds it, package.module:factory, or by a .pt2 file.
    The options of mlx_lm.convert are accepted with the same meaning.
    """
    from torch2mlx import api
    from torch2mlx.sources.remote.urls import is_url, shown

    planned = None
    if plan_file is not None:
        from torch2mlx.selection.plan_file import read_plan

        planned = read_plan(plan_file).location
        if destination is None and mlx_path is None:  # the only argument is DST
            source, destination = None, source
    target = _one("DST", destination, "--mlx-path", mlx_path, default="mlx_model")
    if upload_repo is not None and is_url(target):
        raise OptionError(f"--upload-repo: {shown(target)} is remote itself; give one of the two")
    computes = calibrate or target_bpw is not None or fit is not None or runtime_precision == "auto"
    if no_verify and not (computes or trust_remote_code):
        without_torch.leave_out()
    result = api.convert(
        _one("SRC", source, "--hf-path", hf_path, default=planned),
        target,
        plan=plan_file,
        quantize=quantize,
        q_bits=q_bits,
        q_group_size=q_group_size,
        q_mode=q_mode.value if q_mode else None,
        recipe=recipe,
        keep=tuple(keep or ()),
        bits=tuple(bits or ()),
        embedding=embedding,
        head=head,
        router=router.value if router else None,
        strict=strict,
        target_bpw=target_bpw,
        fit=fit,
        context=context,
        calibrate=calibrate,
        distill=distill,
        calibration_text=tuple(calibration_text or ()),
        calibration_tokens=calibration_tokens,
        calibration_samples=calibration_samples,
        max_kl=max_kl,
        min_top1=min_top1,
        max_perplexity=max_perplexity,
        max_loops=max_loops,
        auto=auto,
        dequantize=dequantize,
        dtype=dtype.value if dtype else None,
        adapter=adapter,
        expert_layout=expert_layout.value if expert_layout else None,
        text_only=text_only,
        runtime_precision=runtime_precision,
        max_shard_size=max_shard_size,
        memory_limit=memory_limit,
        verify=not no_verify,
        max_context=max_context,
        trust_remote_code=trust_remote_code,
        revision=revision,
        keep_download=keep_download,
        restart=restart,
        wait=wait,
        weights=weights,
        also=tuple(also or ()),
        example=example,
        dynamic=tuple(dynamic or ()),
        entry_points=tuple(entry) if entry else None,
        progress=_progress(quiet),
    )
    if os.environ.get("RANK", "0") != "0":  # of several processes, the first speaks
        return
    _show(result, as_json)
    if upload_repo is not None:
        done = api.upload(result.destination, upload_repo)
        typer.echo(f"uploaded to {done.address}", err=True)


def _one(
    name: str, positional: str | None, flag: str, option: str | None, default: str | None = None
) -> str:
    """The value of an argument that mlx-lm takes as an option."""
    if positional is not None and option is not None:
        raise OptionError(f"{name} is given twice: {positional} and {flag} {option}")
    value = positional if positional is not None else option if option is not None else default
    if value is None:
        raise OptionError(f"{name} is missing: torch2mlx convert SRC DST, or {flag}")
    return value


@app.command(epilog="Example:  torch2mlx verify ./SmolLM2-135M ./smollm2-4bit")
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
        _show(check, as_json)
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
        progress=_progress(quiet),
    )
    _show(result, as_json)
    if not result.passed:
        raise typer.Exit(8)


@app.command(epilog="Example:  torch2mlx generate ./smollm2-4bit --prompt 'Why is the sky blue?'")
def generate(
    folder: Annotated[str, typer.Argument(metavar="DST", help="An MLX folder.")],
    prompt: Annotated[str, typer.Option("-p", "--prompt", help="The prompt; - reads stdin.")] = "",
    sound: Annotated[
        str | None,
        typer.Option(help="For a model of speech: a .wav file, or features in .npy."),
    ] = None,
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
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        raw=raw,
        trust_remote_code=trust_remote_code,
        on_text=None if as_json else lambda part: print(part, end="", flush=True),  # noqa: T201
    )
    _show(result, as_json)


@app.command(epilog="Example:  torch2mlx bench ./smollm2-4bit --torch ./SmolLM2-135M --repeats 5")
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
        progress=_progress(quiet),
    )
    if out is not None:
        _write_json(out, result)
    _show(result, as_json)
    if not result.complete:
        raise typer.Exit(8)


def _write_json(path: str, result: Any) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise OptionError(f"--out {path}: cannot be written: {error.strerror or error}") from error


@app.command(epilog="Example:  torch2mlx report ./smollm2-4bit ./smollm2-8bit --out report.html")
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


@app.command(epilog="Example:  torch2mlx upload ./smollm2-4bit me/SmolLM2-4bit --dry-run")
def upload(
    folder: Annotated[str, typer.Argument(metavar="DST", help="A converted folder.")],
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

    _show(api.upload(folder, repository, private=private, dry_run=dry_run), as_json)


@app.command(epilog="Example:  torch2mlx doctor ./smollm2-4bit --fix")
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
    _show(result, as_json)
    if not result.healthy:
        raise typer.Exit(8)


@app.command(epilog="Example:  torch2mlx clean ./models --yes")
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


def main() -> None:
    """Entry point: runs a command and turns errors into messages and exit codes."""
    as_json = "--json" in sys.argv[1:]
    try:
        app()
    except Torch2MLXError as error:
        if as_json:
            kind = type(error).__name__
            typer.echo(json.dumps({"error": {"type": kind, "message": str(error)}}, indent=2))
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
