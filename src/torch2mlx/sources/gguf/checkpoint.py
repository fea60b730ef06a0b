"""A GGUF file as a Hugging Face checkpoint."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torch2mlx.dtypes import DTYPES
from torch2mlx.errors import SourceError, UnsupportedError
from torch2mlx.planning.expressions import Expr, Reshape, Slice, Source, Transpose
from torch2mlx.planning.functions import Apply
from torch2mlx.sources.base import Checkpoint, Packed
from torch2mlx.sources.gguf.architectures import ARCHITECTURES, GGUFArchitecture
from torch2mlx.sources.gguf.source import GGUFSource
from torch2mlx.sources.gguf.tokenizer import GGUFTokenizerFiles

if TYPE_CHECKING:
    import mlx.core as mx

__all__ = ["open_gguf"]

Move = Callable[[Expr], Expr]

_BLOCK = re.compile(
    r"blk\.(?P<layer>\d+)\.(?P<tensor>\w+?)(?:\.(?P<expert>\d+))?\.(?P<kind>weight|bias)"
)
_TOP = re.compile(r"(?P<tensor>\w+)\.(?P<kind>weight|bias)")
# Tensors that hold settings of the position embedding, which belong into the config.
_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_NEEDED = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads")
# Settings of llama.cpp's graphs that the models here have no place for, with the values at which
# they change nothing.
_IDLE: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.scale": (0,),
    "attention.output_scale": (0, 1),
    "attention.temperature_length": (0,),
    "attention.temperature_scale": (0,),
    "embedding_scale": (0, 1),
    "expert_gating_func": (0, 1),  # softmax
    "expert_weights_scale": (0, 1),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
}
_END_TOKENS = ("eos_token_id", "eot_token_id", "eom_token_id")


@dataclass(frozen=True)
class _Mapped:
    """One Hugging Face tensor: the stored tensor, how its axes move, whether 1 was added."""

    stored: str
    move: Move
    shifted: bool


def open_gguf(
    location: str, folder: Path, files: Sequence[Path], notes: Sequence[str]
) -> Checkpoint:
    """The checkpoint that transformers' `gguf_file` loading gives, without loading it.

    Args:
        location: what the user named.
        folder: where the parts are.
        files: the parts, in order.
        notes: what is known already.

    Raises:
        SourceError: a damaged file, or no language model.
        UnsupportedError: an architecture or a tensor without an exact mapping.
    """
    source = GGUFSource(files)
    name = source.metadata.get("general.architecture")
    if not isinstance(name, str) or not source.tensors:
        raise SourceError(f"{files[0]}: names no architecture or has no tensors: not a model")
    experts = source.metadata.get(f"{name}.expert_count") or 0
    architecture = ARCHITECTURES.get(f"{name}+experts" if name == "llama" and experts else name)
    if architecture is None:
        known = ", ".join(sorted(a for a in ARCHITECTURES if "+" not in a))
        raise UnsupportedError(
            f"{files[0]}: GGUF architecture {name!r} has no exact mapping here (known: {known}); "
            "convert from the original checkpoint instead"
        )
    config = _config(files[0], name, architecture, source)
    state: dict[str, Expr] = {}
    packed: dict[str, Packed] = {}
    for hf_name, mapped in _mapping(files[0], architecture, config, source).items():
        info = source.tensors[mapped.stored]
        expr = mapped.move(Source(mapped.stored, info.dtype, info.shape))
        state[hf_name] = _subtract_one(expr) if mapped.shifted else expr
        grid = None if mapped.shifted else source.packed(mapped.stored)
        if grid is not None and len(expr.shape) == 2:
            packed[hf_name] = grid.moved(mapped.move)
    has_tokenizer = "tokenizer.ggml.model" in source.metadata
    return Checkpoint(
        location=location,
        folder=folder,
        kind="gguf",
        config=config,
        source=source,
        state=state,
        generation_config=_generation_config(source.metadata),
        packed=packed,
        tokenizer_files=GGUFTokenizerFiles(files[0], source.header_bytes) if has_tokenizer else {},
        notes=(*notes, _types_note(source), *([] if has_tokenizer else ["holds no tokenizer"])),
    )


def _types_note(source: GGUFSource) -> str:
    counts: dict[str, int] = {}
    for name in source.tensors:
        kind = source.stored_type(name)
        counts[kind] = counts.get(kind, 0) + 1
    return "stored as " + ", ".join(f"{kind} ({count})" for kind, count in sorted(counts.items()))


def _config(
    file: Path, name: str, architecture: GGUFArchitecture, source: GGUFSource
) -> dict[str, Any]:
    metadata = {
        key.removeprefix(f"{name}."): value
        for key, value in source.metadata.items()
        if key.startswith(f"{name}.")
    }
    shapes = {key: info.shape for key, info in source.tensors.items()}
    config: dict[str, Any] = {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
    }
    for key, hf_key in architecture.config.items():
        if key in metadata:
            value = metadata[key]
            if not isinstance(value, int | float):
                raise UnsupportedError(
                    f"{file}: {name}.{key} differs between layers, which {architecture.model_type} "
                    "cannot express"
                )
            config[hf_key] = value
    moved = [
        f"{name}.{key} = {str(metadata[key])[:40]}"
        for key, idle in _IDLE.items()
        if key in metadata and metadata[key] not in idle
    ]
    if moved:
        raise UnsupportedError(
            f"{file}: {', '.join(moved)}: {architecture.model_type} has no such setting, so the "
            "result would be another model; convert from the original checkpoint instead"
        )
    config.setdefault("num_key_value_heads", config.get("num_attention_heads"))
    missing = [key for key in _NEEDED if type(config.get(key)) is not int or config[key] < 1]
    if missing or len(shapes.get("token_embd.weight", ())) != 2:
        raise SourceError(
            f"{file}: its metadata lack {', '.join(missing) or 'the token embedding'}; the file is "
            "incomplete or damaged"
        )
    config.setdefault("rope_theta", 10000.0)
    config["vocab_size"] = shapes["token_embd.weight"][0]
    config["tie_word_embeddings"] = "output.weight" not in shapes
    config.update(architecture.fixed)
    dtype = _common_dtype(source)
    if dtype is not None:
        config["torch_dtype"] = dtype
    if architecture.derive is not None:
        config.update(architecture.derive(metadata, config, shapes))
    config.update(_rope_scaling(file, metadata, config, source))
    # Absent ids are null: the defaults of a config class are those of some other vocabulary.
    for key, token in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        config[f"{key}_token_id"] = source.metadata.get(f"tokenizer.ggml.{token}_token_id")
    return config


def _common_dtype(source: GGUFSource) -> str | None:
    """The type to compute in: what most of the model is stored in.

    Quantized blocks count as float16, the type of their scales; None where most of it is F32.
    """
    sizes: dict[str, int] = {}
    for name, info in source.tensors.items():
        kind = source.stored_type(name)
        sizes[kind] = sizes.get(kind, 0) + info.size
    largest = max(sizes, key=lambda kind: sizes[kind])
    if largest in DTYPES:
        return DTYPES[largest].torch_name if largest in ("F16", "BF16") else None
    return "float16"


def _generation_config(metadata: dict[str, Any]) -> dict[str, Any]:
    """Ids that begin and end a text; every token that ends a turn ends generation."""
    ids = [metadata.get(f"tokenizer.ggml.{token}") for token in _END_TOKENS]
    ends = list(dict.fromkeys(number for number in ids if number is not None))
    result: dict[str, Any] = {}
    if "tokenizer.ggml.bos_token_id" in metadata:
        result["bos_token_id"] = metadata["tokenizer.ggml.bos_token_id"]
    if ends:
        result["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    if "tokenizer.ggml.padding_token_id" in metadata:
        result["pad_token_id"] = metadata["tokenizer.ggml.padding_token_id"]
    return result


def _rope_scaling(
    file: Path, metadata: dict[str, Any], config: dict[str, Any], source: GGUFSource
) -> dict[str, Any]:
    """`rope_scaling` of a config, from metadata and from tensors that carry rotary factors."""
    names = [name for name in _ROPE_TENSORS if name in source.tensors]
    if "rope_freqs.weight" in names:
        return {"rope_scaling": _llama3_scaling(file, config, source)}
    if names:
        return {
            "rope_scaling": {
                "type": "longrope",
                "long_factor": source.read("rope_factors_long.weight").tolist(),
                "short_factor": source.read("rope_factors_short.weight").tolist(),
            }
        }
    kind = metadata.get("rope.scaling.type", "none")
    if kind in ("none", "") or (kind == "longrope" and not names):
        return {}
    factor = metadata.get("rope.scaling.factor")
    if kind == "linear" and factor:
        return {"rope_scaling": {"rope_type": "linear", "factor": factor}}
    if kind == "yarn" and factor:
        original = metadata.get("rope.scaling.original_context_length")
        scaling = {"rope_type": "yarn", "factor": factor}
        if original:
            scaling["original_max_position_embeddings"] = original
        return {"rope_scaling": scaling}
    raise UnsupportedError(
        f"{file}: rotary scaling {kind!r} with factor {factor!r} has no exact mapping here; "
        "convert from the original checkpoint instead"
    )


def _llama3_scaling(file: Path, config: dict[str, Any], source: GGUFSource) -> dict[str, Any]:
    """The llama3 scaling whose factors a rope_freqs tensor holds.

    llama.cpp stores the factors alone; Meta's models use low 1, high 4 and 8192 positions
    (arXiv:2407.21783), so the factor is found from the tensor and the rest is checked against it.
    """
    stored = source.read("rope_freqs.weight").astype(np.float64)
    factor = float(f"{stored.max():.6g}")
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    half = len(stored)
    wavelength = 2 * math.pi * config["rope_theta"] ** (np.arange(half) / half)
    smooth = np.clip((8192 / wavelength - 1.0) / 3.0, 0.0, 1.0)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if not np.allclose(stored, expected, rtol=1e-3):
        raise UnsupportedError(
            f"{file}: rope_freqs.weight is not the scaling of Llama 3.1 or later, and no other is "
            "known; convert from the original checkpoint instead"
        )
    return scaling


def _mapping(
    file: Path, architecture: GGUFArchitecture, config: dict[str, Any], source: GGUFSource
) -> dict[str, _Mapped]:
    """Every Hugging Face tensor; an error lists stored tensors that have no place."""
    found: dict[str, _Mapped] = {}
    unknown = []
    for name, info in source.tensors.items():
        if name in _ROPE_TENSORS:
            continue
        block, top = _BLOCK.fullmatch(name), _TOP.fullmatch(name)
        match = block or top
        table = architecture.blocks if block else architecture.top
        tensor = match["tensor"] if match else ""
        module = table.get(tensor)
        if block and block["expert"] is not None:
            module = table.get(f"{tensor}_exps", "").replace("{expert}", block["expert"]) or None
        if module is None or match is None:
            unknown.append(name)
            continue
        target = f"{module}.{match['kind']}"
        if block:
            target = f"model.layers.{block['layer']}.{target}"
        shifted = architecture.shifted_norms and target.endswith("norm.weight")
        if "{expert}" in target:
            for expert in range(info.shape[0]):
                found[target.replace("{expert}", str(expert))] = _Mapped(
                    name, _expert(expert), False
                )
        else:
            found[target] = _Mapped(
                name, _movement(file, name, architecture, tensor, info.shape, config), shifted
            )
    if unknown:
        raise UnsupportedError(
            f"{file}: {len(unknown)} tensors have no known place in {architecture.model_type}: "
            f"{', '.join(unknown[:6])}; convert from the original checkpoint instead"
        )
    return found


def _movement(
    file: Path,
    name: str,
    architecture: GGUFArchitecture,
    tensor: str,
    shape: tuple[int, ...],
    config: dict[str, Any],
) -> Move:
    if architecture.interleaved and tensor in ("attn_q", "attn_k"):
        heads = config["num_attention_heads" if tensor == "attn_q" else "num_key_value_heads"]
        if shape[0] % (2 * heads):
            raise SourceError(
                f"{file}: tensor {name!r} has {shape[0]} rows, which {heads} heads do not divide "
                "into rotary pairs; its metadata or the tensor is damaged"
            )
        return _deinterleave(heads)
    if tensor == "ffn_gate_inp_shexp" and len(shape) == 1:
        return lambda expr: Reshape(expr, (1, *expr.shape))
    return lambda expr: expr


def _deinterleave(heads: int) -> Move:
    """Rows [head, pair, half] back to [head, half, pair], the order of transformers."""

    def move(expr: Expr) -> Expr:
        rows, *rest = expr.shape
        split = Reshape(expr, (heads, rows // heads // 2, 2, *rest))
        axes = (0, 2, 1, *range(3, 3 + len(rest)))
        return Reshape(Transpose(split, axes), expr.shape)

    return move


def _expert(index: int) -> Move:
    """One expert of a stack."""

    def move(expr: Expr) -> Expr:
        ranges = (range(index, index + 1), *(range(n) for n in expr.shape[1:]))
        return Reshape(Slice(expr, ranges), expr.shape[1:])

    return move


def _subtract_one(expr: Expr) -> Expr:
    """float32 weight - 1: llama.cpp stores norms of Gemma with 1 added."""

    def function(value: mx.array) -> mx.array:
        import mlx.core as mx

        return value.astype(mx.float32) - 1

    return Apply(
        "subtract 1",
        function,
        (expr,),
        DTYPES["F32"],
        expr.shape,
        inverse=lambda value: value + 1,
        forward=lambda value: value.float() - 1,
    )
