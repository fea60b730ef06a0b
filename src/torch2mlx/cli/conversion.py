"""The command that converts, and its many options."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from torch2mlx import without_torch
from torch2mlx.cli.options import (
    Adapter,
    Experts,
    FloatType,
    Json,
    MemoryLimit,
    Mode,
    Quiet,
    Revision,
    Router,
    TextOnly,
    Trust,
)
from torch2mlx.cli.output import progress_bars, show
from torch2mlx.errors import OptionError

__all__ = ["convert"]


_Source = Annotated[
    str | None,
    typer.Argument(
        metavar="SRC",
        help="A folder, a checkpoint file, a hub id, a URL, a .pt2 file or package.module:factory.",
        show_default=False,
    ),
]


def convert(
    source: _Source = None,
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
        int | None,
        typer.Option(
            help="Tokens to calibrate with, and to distil with.",
            show_default="16384; 65536 with --distill",
        ),
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
    memory_limit: MemoryLimit = "1GB",
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
        progress=progress_bars(quiet),
    )
    if os.environ.get("RANK", "0") != "0":  # of several processes, the first speaks
        return
    show(result, as_json)
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
