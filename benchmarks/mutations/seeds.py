"""Small valid checkpoints of every kind of weight file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["CONFIG", "LAYERS", "ROWS", "WIDTH", "tensors", "weight_seeds", "write_gguf"]

WIDTH, ROWS, LAYERS = 32, 48, 2

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": ROWS,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "eos_token_id": 2,
}


def tensors(rows: int = ROWS) -> dict[str, np.ndarray[Any, Any]]:
    """A small Llama's state dict in float32."""
    values = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (rows, WIDTH),
        "model.norm.weight": (WIDTH,),
        "lm_head.weight": (rows, WIDTH),
    }
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.input_layernorm.weight": (WIDTH,),
            f"{at}.post_attention_layernorm.weight": (WIDTH,),
            f"{at}.self_attn.q_proj.weight": (WIDTH, WIDTH),
            f"{at}.self_attn.k_proj.weight": (WIDTH // 2, WIDTH),
            f"{at}.self_attn.v_proj.weight": (WIDTH // 2, WIDTH),
            f"{at}.self_attn.o_proj.weight": (WIDTH, WIDTH),
            f"{at}.mlp.gate_proj.weight": (64, WIDTH),
            f"{at}.mlp.up_proj.weight": (64, WIDTH),
            f"{at}.mlp.down_proj.weight": (WIDTH, 64),
        }
    return {
        name: values.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }


def weight_seeds(root: Path) -> None:
    """Write a valid checkpoint of each kind of weight file to a folder of its name."""
    import torch
    from safetensors.numpy import save_file

    arrays = tensors()
    seeds = {kind: root / kind for kind in ("safetensors", "sharded", "torch", "gguf", "mlx")}
    for folder in seeds.values():
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(CONFIG))
    generation = {"eos_token_id": [2], "transformers_version": "5.0.0"}
    (seeds["safetensors"] / "generation_config.json").write_text(json.dumps(generation))
    save_file(arrays, seeds["safetensors"] / "model.safetensors", metadata={"format": "pt"})
    names = sorted(arrays)
    parts = {"1": names[: len(names) // 2], "2": names[len(names) // 2 :]}
    weight_map = {}
    for part, own in parts.items():
        file = f"model-0000{part}-of-00002.safetensors"
        save_file({n: arrays[n] for n in own}, seeds["sharded"] / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(own, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (seeds["sharded"] / "model.safetensors.index.json").write_text(json.dumps(index))
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    torch.save({"model": state, "epoch": 3}, seeds["torch"] / "pytorch_model.bin")
    write_gguf(seeds["gguf"] / "model.gguf", arrays)
    (seeds["gguf"] / "config.json").unlink()
    _write_mlx(seeds["mlx"], arrays)


def write_gguf(path: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    """Write the Llama, with a small tokenizer, as a GGUF file."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(WIDTH // 4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_array("test.nested", [1, 2, 3])
    _add_tokenizer(writer)
    table = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for name, array in arrays.items():
        stem = name.removesuffix(".weight")
        if stem.startswith("model.layers."):
            _, _, layer, rest = stem.split(".", 3)
            writer.add_tensor(f"blk.{layer}.{table[rest]}.weight", array)
        else:
            writer.add_tensor(f"{table[stem]}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any) -> None:
    words = ["<s>", "</s>", "<unk>", *(chr(0x100 + i) for i in range(ROWS - 5)), "Āā", "āĂ"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words)
    writer.add_token_types([3, 3, 2, *([1] * (ROWS - 3))])
    writer.add_token_merges(["Ā ā", "ā Ă"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


def _write_mlx(folder: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    import mlx.core as mx

    stored = {}
    for name, array in arrays.items():
        if array.ndim == 2 and name.endswith("proj.weight"):
            module = name.removesuffix(".weight")
            parts = mx.quantize(mx.array(array), group_size=32, bits=4)
            stored |= zip((name, f"{module}.scales", f"{module}.biases"), parts, strict=True)
        else:
            stored[name] = mx.array(array)
    mx.save_safetensors(str(folder / "model.safetensors"), stored, metadata={"format": "mlx"})
    entry = {"group_size": 32, "bits": 4, "mode": "affine"}
    skipped = {"model.embed_tokens": False, "lm_head": False}
    config = CONFIG | {"quantization": entry | skipped}
    (folder / "config.json").write_text(json.dumps(config))
