"""Checkpoints with the headers of very large models and no data: sparse files, all zeros.

    python benchmarks/huge.py llama-3-70b deepseek-v3 trillion --folder sparse
    python benchmarks/huge.py llama-3-70b --folder sparse --convert
    python benchmarks/huge.py deepseek-v3 --layers 4 --folder sparse --convert

The shapes, names, dtypes and shard sizes are those of the published models; a file system with
sparse files stores a few megabytes.  What is measured on them is the work that depends on shapes:
reading headers, planning, and streaming at full length.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import struct
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from processes import Usage, measure

__all__ = ["MODELS", "write_sparse"]

Entry = tuple[str, str, tuple[int, ...]]  # name, safetensors dtype, shape

_LLAMA_70B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}

_DEEPSEEK_V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 129280,
    "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "attention_bias": False,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 1,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
}

# A mixture of experts of a trillion parameters, in the layout of DeepSeek-V3.
_TRILLION = _DEEPSEEK_V3 | {
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "n_routed_experts": 384,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 0,
    "vocab_size": 163840,
    "routed_scaling_factor": 2.827,
    "eos_token_id": 163585,
}

MODELS: dict[str, tuple[dict[str, Any], int]] = {  # config, bytes of a shard
    "llama-3-70b": (_LLAMA_70B, 4_900_000_000),
    "deepseek-v3": (_DEEPSEEK_V3, 4_300_000_000),
    "trillion": (_TRILLION, 17_000_000_000),
}


def _llama(config: dict[str, Any], layers: int) -> Iterator[Entry]:
    hidden, inner, words = (
        config["hidden_size"],
        config["intermediate_size"],
        config["vocab_size"],
    )
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", "BF16", (words, hidden)
    for layer in range(layers):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", "BF16", (hidden,)
        for name, shape in {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }.items():
            yield f"{at}.{name}.weight", "BF16", shape
        yield f"{at}.post_attention_layernorm.weight", "BF16", (hidden,)
    yield "model.norm.weight", "BF16", (hidden,)
    yield "lm_head.weight", "BF16", (words, hidden)


def _fp8(name: str, rows: int, columns: int) -> Iterator[Entry]:
    """An fp8 matrix with the scales of its blocks of 128 x 128."""
    yield f"{name}.weight", "F8_E4M3", (rows, columns)
    yield f"{name}.weight_scale_inv", "F32", (-(-rows // 128), -(-columns // 128))


def _deepseek(config: dict[str, Any], layers: int) -> Iterator[Entry]:
    hidden, heads, words = (
        config["hidden_size"],
        config["num_attention_heads"],
        config["vocab_size"],
    )
    queries, keys = config["q_lora_rank"], config["kv_lora_rank"]
    rope, plain, values = (
        config["qk_rope_head_dim"],
        config["qk_nope_head_dim"],
        config["v_head_dim"],
    )
    yield "model.embed_tokens.weight", "BF16", (words, hidden)
    extra = config["num_nextn_predict_layers"] if layers == config["num_hidden_layers"] else 0
    for layer in range(layers + extra):
        at = f"model.layers.{layer}"
        attention = f"{at}.self_attn"
        yield f"{at}.input_layernorm.weight", "BF16", (hidden,)
        yield f"{at}.post_attention_layernorm.weight", "BF16", (hidden,)
        yield f"{attention}.q_a_layernorm.weight", "BF16", (queries,)
        yield f"{attention}.kv_a_layernorm.weight", "BF16", (keys,)
        yield from _fp8(f"{attention}.q_a_proj", queries, hidden)
        yield from _fp8(f"{attention}.q_b_proj", heads * (plain + rope), queries)
        yield from _fp8(f"{attention}.kv_a_proj_with_mqa", keys + rope, hidden)
        yield from _fp8(f"{attention}.kv_b_proj", heads * (plain + values), keys)
        yield from _fp8(f"{attention}.o_proj", hidden, heads * values)
        if layer < config["first_k_dense_replace"]:
            yield from _feed_forward(f"{at}.mlp", hidden, config["intermediate_size"])
        else:
            inner, experts = config["moe_intermediate_size"], config["n_routed_experts"]
            yield f"{at}.mlp.gate.weight", "BF16", (experts, hidden)
            yield f"{at}.mlp.gate.e_score_correction_bias", "F32", (experts,)
            for expert in range(experts):
                yield from _feed_forward(f"{at}.mlp.experts.{expert}", hidden, inner)
            shared = inner * config["n_shared_experts"]
            yield from _feed_forward(f"{at}.mlp.shared_experts", hidden, shared)
        if layer >= layers:  # the layer that predicts the token after the next
            yield f"{at}.enorm.weight", "BF16", (hidden,)
            yield f"{at}.hnorm.weight", "BF16", (hidden,)
            yield f"{at}.eh_proj.weight", "BF16", (hidden, 2 * hidden)
            yield f"{at}.shared_head.norm.weight", "BF16", (hidden,)
            yield f"{at}.shared_head.head.weight", "BF16", (words, hidden)
            yield f"{at}.embed_tokens.weight", "BF16", (words, hidden)
    yield "model.norm.weight", "BF16", (hidden,)
    yield "lm_head.weight", "BF16", (words, hidden)


def _feed_forward(name: str, hidden: int, inner: int) -> Iterator[Entry]:
    yield from _fp8(f"{name}.gate_proj", inner, hidden)
    yield from _fp8(f"{name}.up_proj", inner, hidden)
    yield from _fp8(f"{name}.down_proj", hidden, inner)


_BYTES = {"BF16": 2, "F32": 4, "F8_E4M3": 1}


def write_sparse(name: str, folder: Path, layers: int | None = None) -> int:
    """Write the checkpoint; returns its apparent size in bytes.

    Args:
        name: of `MODELS`.
        folder: to create.
        layers: write only so many decoder layers; None: all of them.
    """
    config, shard_bytes = MODELS[name]
    count = layers or config["num_hidden_layers"]
    tensors = _llama if config["model_type"] == "llama" else _deepseek
    folder.mkdir(parents=True)
    shards: list[list[Entry]] = [[]]
    filled = 0
    for entry in tensors(config, count):
        size = prod(entry[2]) * _BYTES[entry[1]]
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += size
    weight_map, total = {}, 0
    for number, entries in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):06d}.safetensors"
        total += _write_shard(folder / file, entries)
        weight_map |= {entry[0]: file for entry in entries}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    written = config | {"num_hidden_layers": count}
    if count < config["num_hidden_layers"]:
        written.pop("num_nextn_predict_layers", None)
    (folder / "config.json").write_text(json.dumps(written))
    return total


def _write_shard(path: Path, entries: list[Entry]) -> int:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, dtype, shape in entries:
        size = prod(shape) * _BYTES[dtype]
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [position, position + size],
        }
        position += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + position)
    return position


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torch2mlx", *arguments]


def _row(name: str, step: str, usage: Usage) -> None:
    print(
        f"{name:12} {step:24} {usage.wall:8.1f} s wall {usage.cpu:8.1f} s CPU "
        f"{usage.rss / 1e6:7.0f} MB peak",
        flush=True,
    )


def check_and_free(folder: Path) -> tuple[int, int]:
    """Compare each weight file with its hash in the manifest and remove it.

    Returns:
        bytes of the files and number of tensors in their headers.
    """
    records = json.loads((folder / "torch2mlx.json").read_text())["outputs"]
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    size, found = 0, 0
    for path in sorted(folder.glob("*.safetensors")):
        digest = hashlib.sha256()
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            names = json.loads(file.read(length)).keys() - {"__metadata__"}
            file.seek(0)
            while block := file.read(1 << 22):
                digest.update(block)
        if digest.hexdigest() != records[path.name]["sha256"]:
            sys.exit(f"{path}: not what the manifest says")
        if wrong := {name for name in names if index[name] != path.name}:
            sys.exit(f"{path}: not where the index says: {sorted(wrong)[:3]}")
        size, found = size + path.stat().st_size, found + len(names)
        path.unlink()
    if found != len(index):
        sys.exit(f"{folder}: {found} of {len(index)} tensors")
    return size, found


def main() -> None:
    """Write sparse checkpoints, and measure what reads them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", choices=sorted(MODELS), metavar="MODEL")
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoints are made")
    parser.add_argument("--layers", type=int, help="decoder layers to write and convert")
    parser.add_argument("--convert", action="store_true", help="also convert to 4 bits")
    options = parser.parse_args()
    log = options.folder / "log.txt"
    for name in options.models:
        folder = options.folder / (f"{name}-{options.layers}" if options.layers else name)
        if not folder.exists():
            size = write_sparse(name, folder, options.layers)
            print(f"{name}: {size / 1e9:,.0f} GB of tensors, as a sparse file")
        _row(name, "inspect", measure(_command("inspect", str(folder), "--json"), log))
        _row(name, "plan", measure(_command("plan", str(folder), "--json"), log))
        if options.convert:
            target = folder.with_name(f"{folder.name}-4bit")
            arguments = ("convert", str(folder), str(target), "-q", "--no-verify", "--quiet")
            limits = ("--max-shard-size", "5GB", "--json")
            usage = measure(_command(*arguments, *limits), log)
            written, tensors = check_and_free(target)
            _row(name, f"convert, {written / 1e9:.1f} GB out", usage)
            print(f"{name:12} {tensors} tensors in place, every file has the hash of the manifest")
            shutil.rmtree(target)


if __name__ == "__main__":
    main()
