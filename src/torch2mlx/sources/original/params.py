"""params.json of Meta's and Mistral's releases as the config.json that transformers reads.

What a key means is known or the release is refused: a setting that is passed over would be another
model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch2mlx.errors import SourceError, UnsupportedError

__all__ = ["Geometry", "read_geometry", "to_config"]

_KNOWN = {
    "dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim", "vocab_size", "norm_eps",
    "rope_theta", "moe", "use_scaled_rope", "rope_scaling_factor", "sliding_window", "max_seq_len",
    "max_position_embeddings", "model_max_length", "tied_embeddings", "multiple_of",
    "ffn_dim_multiplier", "max_batch_size", "model_parallel_size", "use_biases", "causal",
    "norm_type", "activation", "rope_type", "bos_token_id", "eos_token_id",
}  # fmt: skip
# Keys that stand for the usual model at this value.
_USUAL = {
    "use_biases": False, "causal": True, "norm_type": "RMSNorm", "activation": "SiLU",
    "rope_type": "default",
}  # fmt: skip
# In Llama 3.2 the factor is not written down: 32 in the two small models, 8 in those of 3.1.
_SMALL_SCALED = (2048, 3072)


@dataclass(frozen=True)
class Geometry:
    """What the layout of the tensors depends on.

    Attributes:
        params: params.json.
        width, heads, key_heads, head_width: of the decoder.
        experts: their number, 0 for a dense model.
    """

    params: Mapping[str, Any]
    width: int
    heads: int
    key_heads: int
    head_width: int
    experts: int


_LARGEST = 1 << 24  # of a width, or of any count of parts


def read_geometry(path: Path, params: Mapping[str, Any]) -> Geometry:
    """The sizes that params.json names.

    Raises:
        SourceError: sizes are missing.
        UnsupportedError: keys whose meaning is not known here.
    """
    missing = [k for k in ("dim", "n_layers", "n_heads") if not _is_size(params.get(k))]
    given = [k for k in ("n_kv_heads", "head_dim") if params.get(k)]
    missing += [k for k in given if not _is_size(params[k])]
    if missing:
        raise SourceError(f"{path}: expected numbers {', '.join(missing)}; it is damaged")
    unknown = sorted(set(params) - _KNOWN) + [
        k for k, v in _USUAL.items() if params.get(k, v) not in (v, None)
    ]
    unknown = [k for k in unknown if params.get(k) is not None]
    if unknown:
        listed = ", ".join(f"{k} = {str(params[k])[:40]}" for k in unknown)
        raise UnsupportedError(
            f"{path}: {listed}: not known here, so the result could be another model; convert the "
            "Hugging Face version of it"
        )
    moe = params.get("moe")
    return Geometry(
        params,
        params["dim"],
        params["n_heads"],
        params.get("n_kv_heads") or params["n_heads"],
        params.get("head_dim") or params["dim"] // params["n_heads"],
        _experts(path, moe) if isinstance(moe, Mapping) else 0,
    )


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value < _LARGEST


def _experts(path: Path, moe: Mapping[Any, Any]) -> int:
    count = moe.get("num_experts")
    if not _is_size(count):
        raise SourceError(f"{path}: expected a number moe.num_experts; it is damaged")
    return int(count)  # type: ignore[arg-type]


def to_config(
    geometry: Geometry, family: str, *, vocabulary: int, inner: int, tied: bool, dtype: str
) -> dict[str, Any]:
    """config.json of the model.

    Args:
        geometry: of params.json.
        family: "llama" or "mistral".
        vocabulary: rows of the embedding.
        inner: rows of w1.
        tied: no output matrix of its own.
        dtype: of the tensors.
    """
    params = geometry.params
    scaled = bool(params.get("use_scaled_rope"))
    longest = next(
        (
            params[k]
            for k in ("max_position_embeddings", "model_max_length", "max_seq_len")
            if isinstance(params.get(k), int)
        ),
        131072 if scaled else 32768 if family == "mistral" else 8192 if vocabulary > 1e5 else 4096,
    )
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": params.get("rope_theta") or (1e6 if geometry.experts else 1e4),
    }
    if scaled:
        factor = params.get("rope_scaling_factor")
        rope |= {
            "rope_type": "llama3",
            "factor": float(factor or (32 if geometry.width in _SMALL_SCALED else 8)),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    config: dict[str, Any] = {
        "model_type": "mixtral" if geometry.experts else family,
        "hidden_size": geometry.width,
        "num_hidden_layers": params["n_layers"],
        "num_attention_heads": geometry.heads,
        "num_key_value_heads": geometry.key_heads,
        "head_dim": geometry.head_width,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "rms_norm_eps": params.get("norm_eps", 1e-5),
        "hidden_act": "silu",
        "max_position_embeddings": longest,
        "rope_parameters": rope,
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
    }
    if geometry.experts:
        config["num_local_experts"] = geometry.experts
        config["num_experts_per_tok"] = params["moe"].get("num_experts_per_tok", 2)
    if family == "mistral" or geometry.experts:
        config["sliding_window"] = params.get("sliding_window")
        config["architectures"] = [
            "MixtralForCausalLM" if geometry.experts else "MistralForCausalLM"
        ]
    else:
        config["architectures"] = ["LlamaForCausalLM"]
    return config
