"""Diagnose a checkpoint from its headers and config: what it is, and what could go wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch2mlx.architectures.catalog import port_name, runs_sharded, similar_ports
from torch2mlx.architectures.limits import FLOAT16_OVERFLOWS, stated_limits
from torch2mlx.architectures.registry import rules_for
from torch2mlx.errors import UnsupportedError
from torch2mlx.inspection.costs import describe_costs, odd_widths
from torch2mlx.inspection.layout import (
    draw_experts,
    expert_layouts,
    parameters_by_class,
    tied_pairs,
)
from torch2mlx.inspection.moves import moved_experts
from torch2mlx.inspection.words import (
    find_licence,
    has_template,
    has_tokenizer,
    tokenizer_faults,
    too_large_to_fetch,
)
from torch2mlx.sources.base import Checkpoint

__all__ = ["Inspection", "inspect_checkpoint"]


@dataclass(frozen=True)
class Inspection:
    """What headers and config tell.

    Attributes:
        location: as the user named it.
        kind: "safetensors", "torch" or "gguf".
        model_type, architectures: from config.json.
        route: name of the mlx-lm port that will be tried, or None.
        program: what it is, where `convert` compiles it or makes a folder of another library
            ("a speech model"); None: a port of a language model is needed.
        sharded: that port runs on several machines with mlx.launch.
        files: number of weight files.
        parameters: number of weights.
        nbytes: bytes of the weight files' tensors.
        dtypes: number of weights by torch dtype name.
        layers, experts: as the config says, or None.
        tied: the output head is the embedding.
        context: longest sequence that the config allows, or None.
        tokenizer, chat_template: there is one.
        licence: as the model card says, the name of a licence file, or None.
        classes: number of weights by kind of module ("attention", "experts" ...).
        expert_layout: lines of a picture of the layers' experts, then of the tensors of the first
            such layer, before and after; () for dense models.
        costs: what memory, quantization, architecture and tokenizer take here, by name.
        hazards: what could go wrong, each with what to do.
        notes: how the files were understood.
    """

    location: str
    kind: str
    model_type: str
    architectures: tuple[str, ...]
    route: str | None
    program: str | None
    sharded: bool
    files: int
    parameters: int
    nbytes: int
    dtypes: Mapping[str, int]
    layers: int | None
    experts: int | None
    tied: bool | None
    context: int | None
    tokenizer: bool
    chat_template: bool
    licence: str | None
    classes: Mapping[str, int]
    expert_layout: tuple[str, ...]
    costs: Mapping[str, str]
    hazards: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def inspect_checkpoint(checkpoint: Checkpoint, program: str | None = None) -> Inspection:
    """Describe an opened checkpoint; nothing but headers and small files is read.

    Args:
        checkpoint: what was opened.
        program: see `Inspection`.
    """
    config = checkpoint.config
    text = config.get("text_config")
    merged = {**config, **text} if isinstance(text, Mapping) else dict(config)
    infos = checkpoint.source.tensors
    dtypes = Counter[str]()
    for expr in checkpoint.state.values():
        dtypes[expr.dtype.torch_name] += expr.size
    port = None if program is not None else _route(config)
    hazards = tuple(_hazards(checkpoint, merged, len(infos), program))
    of_layer = config.get("ffn_config")  # of dbrx
    active = _first_int(
        {**(of_layer if isinstance(of_layer, Mapping) else {}), **merged},
        *("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k"),
    )
    return Inspection(
        location=checkpoint.location,
        kind=checkpoint.kind,
        model_type=str(config.get("model_type")),
        architectures=tuple(config.get("architectures") or ()),
        route=port,
        program=program,
        sharded=port is not None and runs_sharded(port),
        files=len(checkpoint.source.files),
        parameters=dtypes.total(),
        nbytes=sum(path.stat().st_size for path in checkpoint.source.files),
        dtypes=dict(dtypes.most_common()),
        layers=_first_int(merged, "num_hidden_layers", "n_layer", "n_layers", "num_layers"),
        experts=_first_int(
            merged, "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"
        ),
        tied=merged.get("tie_word_embeddings"),
        context=_first_int(merged, "max_position_embeddings", "n_positions", "max_seq_len"),
        tokenizer=has_tokenizer(checkpoint),
        chat_template=has_template(checkpoint),
        licence=find_licence(checkpoint),
        classes=parameters_by_class(checkpoint.state),
        expert_layout=(
            *draw_experts(expert_layouts(checkpoint.state), active),
            *moved_experts(checkpoint),
        ),
        costs=describe_costs(checkpoint, port, program),
        hazards=hazards,
        notes=(*checkpoint.notes, *too_large_to_fetch(checkpoint)),
    )


def _route(config: Mapping[str, Any]) -> str | None:
    reshape = rules_for(str(config.get("model_type"))).reshape
    try:
        return port_name(reshape(dict(config)) if reshape else config)
    except UnsupportedError:  # a port of that name is another model's
        return None


def _first_int(config: Mapping[str, Any], *keys: str) -> int | None:
    return next((config[k] for k in keys if isinstance(config.get(k), int)), None)


def _hazards(
    checkpoint: Checkpoint, config: Mapping[str, Any], tensors: int, program: str | None
) -> Iterator[str]:
    model_type = str(config.get("model_type"))
    if program is None and _route(checkpoint.config) is None:
        close = similar_ports(model_type)
        hint = f" (similar: {', '.join(close)})" if close else ""
        yield f"mlx-lm has no port for model type {model_type!r}{hint}; it cannot be converted"
    for limit in stated_limits(checkpoint.config):
        yield f"mlx-lm differs from PyTorch: {limit}"
    if config.get("auto_map"):
        yield (
            "the checkpoint brings its own Python code; PyTorch needs --trust-remote-code to run "
            "it, and the parity gate needs PyTorch"
        )
    packed = config.get("quantization_config")
    if isinstance(packed, Mapping):
        method = packed.get("quant_method", packed.get("format", "unknown"))
        yield f"the weights are packed ({method}); only formats that the port unpacks convert"
    if program is None or "tokenizer.json" in checkpoint.tokenizer_files:
        yield from tokenizer_faults(checkpoint)
    if checkpoint.kind == "torch":
        yield (
            "the weights are pickles, which can run code in programs that load them; torch2mlx "
            "reads them without running any, and what it writes holds none"
        )
    if model_type.startswith(FLOAT16_OVERFLOWS):
        yield (
            f"{model_type} overflows float16 in its activations (known of the family): keep "
            "bfloat16 or float32, do not use --dtype float16"
        )
    for name in tied_pairs(checkpoint.state, config.get("tie_word_embeddings")):
        yield (
            f"{name} is stored although config.json ties the head to the embedding: PyTorch "
            "ignores it, and so does the conversion"
        )
    halves = {"float16", "bfloat16"}
    types = {expr.dtype.torch_name for expr in checkpoint.state.values() if expr.dtype.floating}
    plain = checkpoint.kind != "gguf"
    if plain and types == {"float32"} and config.get("torch_dtype") in halves:
        yield f"stored in float32, config.json says {config['torch_dtype']}: it will be rounded"
    if "float64" in types:
        yield "float64 weights: MLX computes in float32 at most, they will be rounded"
    for group in (32, 64):
        odd = odd_widths(checkpoint, group)
        if odd and (group == 64 or odd != odd_widths(checkpoint, 64)):
            widths = ", ".join(map(str, sorted(odd)[:4]))
            yield (
                f"widths that a group size of {group} does not divide ({widths}): with it, such "
                "layers stay unquantized"
            )
    if not tensors:
        yield "no tensors at all"
