"""Diagnose a checkpoint from its headers and config: what it is, and what could go wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch2mlx.architectures.catalog import port_name, runs_sharded, similar_ports
from torch2mlx.architectures.limits import stated_limits
from torch2mlx.architectures.registry import rules_for
from torch2mlx.sources.base import Checkpoint
from torch2mlx.sources.gguf.source import GGUFSource

__all__ = ["Inspection", "inspect_checkpoint"]


@dataclass(frozen=True)
class Inspection:
    """What headers and config tell.

    Attributes:
        location: as the user named it.
        kind: "safetensors", "torch" or "gguf".
        model_type, architectures: from config.json.
        route: name of the mlx-lm port that will be tried, or None.
        sharded: that port runs on several machines with mlx.launch.
        files: number of weight files.
        parameters: number of weights.
        nbytes: bytes of the weight files' tensors.
        dtypes: number of weights by torch dtype name.
        layers, experts: as the config says, or None.
        tied: the output head is the embedding.
        context: longest sequence that the config allows, or None.
        tokenizer, chat_template: there is one.
        hazards: what could go wrong, each with what to do.
        notes: how the files were understood.
    """

    location: str
    kind: str
    model_type: str
    architectures: tuple[str, ...]
    route: str | None
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
    hazards: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def inspect_checkpoint(checkpoint: Checkpoint) -> Inspection:
    """Describe an opened checkpoint; nothing but headers and small files is read."""
    config = checkpoint.config
    text = config.get("text_config")
    merged = {**config, **text} if isinstance(text, Mapping) else dict(config)
    infos = checkpoint.source.tensors
    dtypes = Counter[str]()
    for expr in checkpoint.state.values():
        dtypes[expr.dtype.torch_name] += expr.size
    tokenizer, template = _tokenizer(checkpoint)
    port = _route(config)
    return Inspection(
        location=checkpoint.location,
        kind=checkpoint.kind,
        model_type=str(config.get("model_type")),
        architectures=tuple(config.get("architectures") or ()),
        route=port,
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
        tokenizer=tokenizer,
        chat_template=template,
        hazards=tuple(_hazards(checkpoint, merged, len(infos))),
        notes=checkpoint.notes,
    )


def _route(config: Mapping[str, Any]) -> str | None:
    reshape = rules_for(str(config.get("model_type"))).reshape
    return port_name(reshape(dict(config)) if reshape else config)


def _first_int(config: Mapping[str, Any], *keys: str) -> int | None:
    return next((config[k] for k in keys if isinstance(config.get(k), int)), None)


def _tokenizer(checkpoint: Checkpoint) -> tuple[bool, bool]:
    """Whether there is a tokenizer, and a chat template, without loading either."""
    if isinstance(checkpoint.source, GGUFSource):  # whose tokenizer files are made on demand
        metadata = checkpoint.source.metadata
        return "tokenizer.ggml.tokens" in metadata, "tokenizer.chat_template" in metadata
    files = checkpoint.tokenizer_files
    tokenizer = any("tokenizer" in n or "vocab" in n or n.endswith(".model") for n in files)
    template = any("chat_template" in n for n in files) or any(
        "chat_template" in files[n].read_text(encoding="utf-8", errors="replace")
        for n in files
        if n.endswith("_config.json") and files[n].exists()
    )
    return tokenizer, template


def _hazards(checkpoint: Checkpoint, config: Mapping[str, Any], tensors: int) -> Iterator[str]:
    model_type = str(config.get("model_type"))
    if _route(checkpoint.config) is None:
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
    if not _tokenizer(checkpoint)[0]:
        yield "no tokenizer files: the result cannot generate text or chat"
    halves = {"float16", "bfloat16"}
    types = {expr.dtype.torch_name for expr in checkpoint.state.values() if expr.dtype.floating}
    plain = checkpoint.kind != "gguf"
    if plain and types == {"float32"} and config.get("torch_dtype") in halves:
        yield f"stored in float32, config.json says {config['torch_dtype']}: it will be rounded"
    if "float64" in types:
        yield "float64 weights: MLX computes in float32 at most, they will be rounded"
    odd = sorted(
        {
            expr.shape[-1]
            for expr in checkpoint.state.values()
            if len(expr.shape) >= 2 and expr.shape[-1] % 32 and expr.shape[-1] > 32
        }
    )
    if odd:
        widths = ", ".join(map(str, odd[:4]))
        yield f"widths that no group size divides ({widths}): such layers stay unquantized"
    if not tensors:
        yield "no tensors at all"
