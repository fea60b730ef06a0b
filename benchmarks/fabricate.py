"""Writes checkpoints of a real model's shape and size, with random weights, for benchmarks.

    python benchmarks/fabricate.py llama-4 /tmp/llama-4

The folder looks like one from the hub: config.json in the flat style, sharded bfloat16
safetensors with an index, a tokenizer.  Nothing larger than a 64 MB pool of values is ever in
memory, so the checkpoint may be larger than the machine.  The same name gives the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["SHAPES", "ModelShape", "fabricate"]

POOL_VALUES = 32 * 2**20
SHARD_BYTES = 10**9
VOCABULARY = 32_000


@dataclass(frozen=True)
class ModelShape:
    """A decoder's sizes; `experts` > 0 makes it a Mixtral, otherwise it is a Llama."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    experts: int = 0
    vocabulary: int = field(default=VOCABULARY)

    @property
    def config(self) -> dict[str, Any]:
        """config.json as such models have it on the hub."""
        moe = {"num_local_experts": self.experts, "num_experts_per_tok": 2} if self.experts else {}
        return {
            "architectures": ["MixtralForCausalLM" if self.experts else "LlamaForCausalLM"],
            "model_type": "mixtral" if self.experts else "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "bos_token_id": 1,
            "eos_token_id": 2,
            **moe,
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every parameter's name and shape, in the order of the files."""
        head = self.hidden // self.heads
        keys = self.kv_heads * head
        up, down = (self.intermediate, self.hidden), (self.hidden, self.intermediate)
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            at = f"model.layers.{layer}"
            yield f"{at}.input_layernorm.weight", (self.hidden,)
            yield f"{at}.self_attn.q_proj.weight", (self.hidden, self.hidden)
            yield f"{at}.self_attn.k_proj.weight", (keys, self.hidden)
            yield f"{at}.self_attn.v_proj.weight", (keys, self.hidden)
            yield f"{at}.self_attn.o_proj.weight", (self.hidden, self.hidden)
            yield f"{at}.post_attention_layernorm.weight", (self.hidden,)
            if self.experts:
                yield f"{at}.block_sparse_moe.gate.weight", (self.experts, self.hidden)
            for expert in range(self.experts):
                for name, shape in (("w1", up), ("w2", down), ("w3", up)):
                    yield f"{at}.block_sparse_moe.experts.{expert}.{name}.weight", shape
            if not self.experts:
                yield f"{at}.mlp.gate_proj.weight", up
                yield f"{at}.mlp.up_proj.weight", up
                yield f"{at}.mlp.down_proj.weight", down
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocabulary, self.hidden)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights in bfloat16."""
        return sum(2 * prod(shape) for _, shape in self.tensors())


SHAPES: dict[str, ModelShape] = {
    # Small enough that what a conversion costs is its start-up.
    "llama-tiny": ModelShape(64, 128, 2, 4, 2, vocabulary=256),
    "mixtral-tiny": ModelShape(64, 128, 2, 4, 2, experts=4, vocabulary=256),
    # Named by their size in GB (10**9 bytes).
    "llama-1": ModelShape(2048, 5632, 8, 32, 8),
    "llama-4": ModelShape(3072, 8192, 18, 24, 8),
    "llama-8": ModelShape(4096, 14336, 17, 32, 8),
    "llama-8b-two-layers": ModelShape(4096, 14336, 2, 32, 8, vocabulary=128_256),
    "mixtral-4": ModelShape(2048, 3584, 10, 32, 8, experts=8),
}


def normal_bfloat16(count: int, seed: int) -> bytes:
    """`count` values of N(0, 0.02) as bfloat16, rounded to nearest even."""
    import numpy as np

    generator = np.random.default_rng(seed)
    out = np.empty(count, dtype=np.uint16)
    for start in range(0, count, 2**20):
        part = out[start : start + 2**20]
        bits = (generator.standard_normal(part.size, dtype=np.float32) * 0.02).view(np.uint32)
        part[:] = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return out.tobytes()


def write_values(file: BinaryIO, pool: memoryview, name: str, nbytes: int) -> None:
    """`nbytes` of the pool, read round and round from a place that depends on the name."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    position = int.from_bytes(digest, "little") % (len(pool) // 2) * 2
    while nbytes:
        part = pool[position : position + nbytes]
        file.write(part)
        nbytes -= len(part)
        position = 0


def write_shard(path: Path, tensors: list[tuple[str, tuple[int, ...]]], pool: memoryview) -> None:
    """One safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors:
        end = offset + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors:
            if name.endswith("norm.weight"):
                file.write(b"\x80\x3f" * prod(shape))  # 1.0
            else:
                write_values(file, pool, name, 2 * prod(shape))


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    """A word-level tokenizer: as much as a converter asks for."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(vocabulary - 3))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def fabricate(name: str, folder: Path) -> Path:
    """Write the checkpoint `name` (a key of `SHAPES`) to `folder`, unless it is there already.

    It is written beside its place and renamed, so a folder that exists is complete.

    Raises:
        KeyError: no such shape.
        OSError: the disk has no room for it.
    """
    shape = SHAPES[name]
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < shape.nbytes * 1.05:
        raise OSError(f"{folder}: {name} needs {shape.nbytes:,} bytes, {free:,} are free")
    staging = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()

    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    used = 0
    for tensor, dims in shape.tensors():
        nbytes = 2 * prod(dims)
        if used and used + nbytes > SHARD_BYTES:
            shards.append([])
            used = 0
        shards[-1].append((tensor, dims))
        used += nbytes
    pool = memoryview(normal_bfloat16(min(POOL_VALUES, shape.nbytes // 2), seed=2026))
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        file = (
            "model.safetensors"
            if len(shards) == 1
            else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        )
        write_shard(staging / file, tensors, pool)
        weight_map |= {tensor: file for tensor, _ in tensors}
    if len(shards) > 1:
        index = {"metadata": {"total_size": shape.nbytes}, "weight_map": weight_map}
        (staging / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (staging / "config.json").write_text(json.dumps(shape.config, indent=2))
    write_tokenizer(staging, shape.vocabulary)
    staging.rename(folder)
    return folder


def main() -> None:
    """Command line: a shape's name and a folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=sorted(SHAPES))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    fabricate(arguments.name, arguments.folder)
    print(f"{arguments.folder}: {SHAPES[arguments.name].nbytes / 1e9:.2f} GB of weights")


if __name__ == "__main__":
    main()
