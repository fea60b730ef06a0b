"""Tiny GGUF files, laid out as llama.cpp's converter lays them out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rotary halves to neighbouring pairs, as llama.cpp's converter does for Llama."""
    split = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return split.swapaxes(1, 2).reshape(weight.shape)


def stored_state(arch: str, model: Any) -> dict[str, np.ndarray]:
    """A model's tensors as llama.cpp's converter writes them."""
    config = model.config
    number = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == arch)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    found: dict[str, np.ndarray] = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        value = tensor.numpy()
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            value = value + 1
        if arch == "llama" and ".q_proj." in name:
            value = permuted(value, config.num_attention_heads)
        if arch == "llama" and ".k_proj." in name:
            value = permuted(value, config.num_key_value_heads)
        if ".experts." in name:
            layer = name.split(".")[2]
            if name.endswith("gate_up_proj"):
                half = value.shape[1] // 2
                found[f"blk.{layer}.ffn_gate_exps.weight"] = value[:, :half].copy()
                found[f"blk.{layer}.ffn_up_exps.weight"] = value[:, half:].copy()
            else:
                found[f"blk.{layer}.ffn_down_exps.weight"] = value
            continue
        if name.endswith("shared_expert_gate.weight"):
            value = value[0]
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored, name
        found[stored] = value
    return found


def write_gguf(
    path: Path, arch: str, model: Any, extra: dict[str, int | float], kind: Any = None
) -> None:
    """A file of a model's tensors; `kind` is the block type of the matrices, if not float32."""
    config = model.config
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_freq_base(rope_theta(config))
    writer.add_pad_token_id(0)
    writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_layer_norm_eps(1e-5)
    if arch == "llama":
        writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    for key, value in extra.items():
        if isinstance(value, float):
            writer.add_float32(f"{arch}.{key}", value)
        else:
            writer.add_uint32(f"{arch}.{key}", value)
    for name, value in stored_state(arch, model).items():
        value = np.ascontiguousarray(value)
        if kind is not None and value.ndim == 2:
            writer.add_tensor(name, gguf.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rope_theta(config: Any) -> float:
    parameters = config.rope_parameters
    return float(parameters.get("full_attention", parameters)["rope_theta"])
