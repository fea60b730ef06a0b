"""Damaged packed checkpoints, adapters and original releases.

The files stay valid safetensors or torch archives: what is damaged is what they say together.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mutations.damage import copied, damage_file, rewrite_json
from mutations.seeds import CONFIG, LAYERS, ROWS, WIDTH, tensors
from mutations.tensors import Array, retensor, save_tensors
from mutations.weights import rewrite_archive

__all__ = [
    "METHODS",
    "adapter",
    "original",
    "packed",
    "packed_seeds",
    "random_scales",
    "resettle",
    "write_packed",
]

_GROUP = 32
_WORDS = 520  # of originals: 256 bytes, and as many special tokens


def packed_seeds(root: Path) -> None:
    """Write a valid folder of each kind; the codes are random numbers."""
    for name, (settings, pack) in METHODS.items():
        write_packed(root / "packed" / name, settings, pack)
    _write_adapters(root / "adapters")
    _write_originals(root / "originals")


# Packed: settings of config.json, and the tensors by suffix that stand for a weight.


def _gptq(rng: np.random.Generator, out: int, width: int) -> dict[str, Array]:
    groups = width // _GROUP
    return {
        "qweight": _words(rng, (width // 8, out)),
        "qzeros": _words(rng, (groups, out // 8)),
        "scales": random_scales(rng, (groups, out)).astype(np.float16),
        "g_idx": (np.arange(width) // _GROUP).astype(np.int32),
    }


def _awq(rng: np.random.Generator, out: int, width: int) -> dict[str, Array]:
    groups = width // _GROUP
    return {
        "qweight": _words(rng, (width, out // 8)),
        "qzeros": _words(rng, (groups, out // 8)),
        "scales": random_scales(rng, (groups, out)).astype(np.float16),
    }


def _compressed(rng: np.random.Generator, out: int, width: int) -> dict[str, Array]:
    return {
        "weight_packed": _words(rng, (out, width // 8)),
        "weight_scale": random_scales(rng, (out, width // _GROUP)),
        "weight_shape": np.array([out, width]),
    }


def _nf4(rng: np.random.Generator, out: int, width: int) -> dict[str, Array]:
    state = {
        "quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [out, width],
        "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5,
    }  # fmt: skip
    return {
        "weight": rng.integers(0, 256, (out * width // 2, 1), np.uint8),
        "weight.absmax": rng.integers(0, 256, out * width // 64, np.uint8),
        "weight.quant_map": np.linspace(-1, 1, 16, dtype=np.float32),
        "weight.nested_absmax": random_scales(rng, (1,)),
        "weight.nested_quant_map": np.linspace(-1, 1, 256, dtype=np.float32),
        "weight.quant_state.bitsandbytes__nf4": np.frombuffer(json.dumps(state).encode(), np.uint8),
    }


def _int8(rng: np.random.Generator, out: int, width: int) -> dict[str, Array]:
    return {
        "weight": rng.integers(-127, 128, (out, width), np.int8),
        "SCB": random_scales(rng, (out,)),
        "weight_format": np.array(0, np.int8),
    }


def _fp8(rng: np.random.Generator, out: int, width: int) -> dict[str, Array]:
    import torch

    values = torch.from_numpy(rng.standard_normal((out, width)))
    return {
        "weight": values.to(torch.float8_e4m3fn),
        "weight_scale_inv": random_scales(rng, (out // 16, width // 16)),
    }


def _nvfp4(rng: np.random.Generator, out: int, width: int) -> dict[str, Array]:
    import torch

    scales = torch.from_numpy(random_scales(rng, (out, width // 16)))
    return {
        "weight": rng.integers(0, 256, (out, width // 2), np.uint8),
        "weight_scale": scales.to(torch.float8_e4m3fn),
        "weight_scale_2": np.array(0.01, np.float32),
    }


def _words(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.integers(-(2**31), 2**31, shape, np.int32)


def random_scales(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """float32 numbers as small as scales are."""
    return rng.uniform(0.01, 0.1, shape).astype(np.float32)


_Pack = Callable[[np.random.Generator, int, int], dict[str, Array]]
METHODS: dict[str, tuple[dict[str, Any], _Pack]] = {
    "gptq": (
        {"quant_method": "gptq", "bits": 4, "group_size": _GROUP, "desc_act": False, "sym": True},
        _gptq,
    ),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": _GROUP, "zero_point": True}, _awq),
    "compressed": (
        {
            "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
                "num_bits": 4, "type": "int", "strategy": "group", "group_size": _GROUP,
                "symmetric": True,
            }}},
        },
        _compressed,
    ),
    "nf4": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, _nf4
    ),
    "int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, _int8),
    "fp8": ({"quant_method": "fp8", "weight_block_size": [16, 16]}, _fp8),
    "nvfp4": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, _nvfp4),
}  # fmt: skip


def write_packed(
    folder: Path, settings: dict[str, Any], pack: _Pack, describe: Callable[[], str] | None = None
) -> None:
    """Write the Llama with packed layers.

    Args:
        folder: to create.
        settings: `quantization_config`.
        pack: (random numbers, rows, columns) → tensors by suffix.
        describe: what the header says of each packed weight.
    """
    rng = np.random.default_rng(0)
    stored: dict[str, Array] = {}
    header: dict[str, str] = {}
    for name, array in tensors().items():
        if ".layers." in name and array.ndim == 2:
            parts = pack(rng, *array.shape)
            stored |= {f"{name.removesuffix('.weight')}.{k}": v for k, v in parts.items()}
            header |= {} if describe is None else {name: describe()}
        else:
            stored[name] = array
    folder.mkdir(parents=True)
    save_tensors(stored, folder / "model.safetensors", header)
    config = CONFIG | {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))


def packed(rng: random.Random, seeds: Path, folder: Path) -> str:
    """Settings, tensors or codes of a packed checkpoint."""
    method = rng.choice(sorted(METHODS))
    copied(seeds / "packed" / method, folder)
    if rng.random() < 0.5:
        resettle(rng, folder / "config.json")
        return f"{method} settings"
    retensor(rng, folder / "model.safetensors")
    return f"{method} tensors"


def resettle(rng: random.Random, path: Path) -> None:
    """Damage `quantization_config` in config.json."""
    config = json.loads(path.read_text())
    part = path.with_name("part.json")
    part.write_text(json.dumps(config["quantization_config"]))
    rewrite_json(rng, part)
    text = json.dumps({k: v for k, v in config.items() if k != "quantization_config"})
    path.write_text(f'{text[:-1]}, "quantization_config": {part.read_text()}}}')
    part.unlink()


# Adapters.


def _write_adapters(root: Path) -> None:
    rng = np.random.default_rng(1)
    stored: dict[str, Array] = {}
    for layer in range(LAYERS):
        at = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        stored[f"{at}.lora_A.weight"] = random_scales(rng, (4, WIDTH))
        stored[f"{at}.lora_B.weight"] = random_scales(rng, (WIDTH, 4))
        stored[f"{at}.lora_magnitude_vector"] = random_scales(rng, (WIDTH,))
    stored["base_model.model.lm_head.weight"] = random_scales(rng, (ROWS, WIDTH))
    config = {
        "peft_type": "LORA", "base_model_name_or_path": "base", "r": 4, "lora_alpha": 8,
        "use_dora": True, "use_rslora": False, "fan_in_fan_out": False, "bias": "none",
        "rank_pattern": {"k_proj": 2}, "alpha_pattern": {}, "modules_to_save": ["lm_head"],
        "target_modules": ["q_proj"],
    }  # fmt: skip
    _write_adapter(root / "peft", config, stored, "adapter_model.safetensors")
    own = {}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}.mlp.down_proj"
        own[f"{at}.lora_a"] = random_scales(rng, (64, 4))
        own[f"{at}.lora_b"] = random_scales(rng, (4, WIDTH))
    config = {
        "model": "base", "fine_tune_type": "lora", "num_layers": LAYERS,
        "lora_parameters": {"rank": 4, "scale": 2.0, "dropout": 0.0},
    }  # fmt: skip
    _write_adapter(root / "mlx", config, own, "adapters.safetensors")


def _write_adapter(
    folder: Path, config: dict[str, Any], stored: dict[str, Array], file: str
) -> None:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_tensors(stored, folder / file)


def adapter(rng: random.Random, seeds: Path, folder: Path) -> str:
    """Config or matrices of an adapter, whose base lies in a folder of it."""
    kind = rng.choice(("mlx", "peft"))
    copied(seeds / "adapters" / kind, folder)
    copied(seeds / "safetensors", folder / "base")
    damaged = rng.randrange(3)
    if damaged == 0:
        retensor(rng, next(folder.glob("*.safetensors")))
    elif damaged == 1:
        damage_file(rng, next(folder.glob("*.safetensors")), 600)
    else:
        rewrite_json(rng, folder / "adapter_config.json")
    return kind


# Original releases.


def _write_originals(root: Path) -> None:
    import torch

    params = {
        "dim": WIDTH, "n_layers": LAYERS, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5,
        "rope_theta": 10000.0, "vocab_size": -1, "multiple_of": 64,
    }  # fmt: skip
    names = {
        "model.embed_tokens": "tok_embeddings", "lm_head": "output", "model.norm": "norm",
        "model.": "", "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk",
        "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
        "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3",
    }  # fmt: skip
    ranks: list[dict[str, Any]] = [{}, {}]
    whole = {}
    for name, array in tensors(_WORDS).items():
        new = name
        for theirs, ours in names.items():
            new = new.replace(theirs, ours)
        axis = 1 if new.endswith(("wo.weight", "w2.weight")) or "tok_emb" in new else 0
        parts = np.split(array, 2, axis) if array.ndim == 2 else [array] * 2
        for rank, part in zip(ranks, parts, strict=True):
            rank[new] = torch.from_numpy(part.copy())
        whole[new] = array
    for name in ("meta", "mistral"):
        (root / name).mkdir(parents=True)
    for number, rank in enumerate(ranks):
        torch.save(rank, root / "meta" / f"consolidated.{number:02d}.pth")
    (root / "meta" / "params.json").write_text(json.dumps(params))
    words = [bytes([i]) for i in range(256)] + [b"th", b"the", b" the"]
    lines = [f"{base64.b64encode(word).decode()} {i}" for i, word in enumerate(words)]
    (root / "meta" / "tokenizer.model").write_text("\n".join(lines) + "\n")
    save_tensors(whole, root / "mistral" / "consolidated.safetensors")
    more = {"hidden_dim": 64, "head_dim": 8, "vocab_size": _WORDS}
    (root / "mistral" / "params.json").write_text(json.dumps(params | more))
    (root / "mistral" / "tekken.json").write_text(json.dumps(_tekken(words)))
    _write_sentences(root / "sentences.model")


def _tekken(words: list[bytes]) -> dict[str, Any]:
    special = [
        {"rank": i, "token_str": text, "is_control": True}
        for i, text in enumerate(("<unk>", "<s>", "</s>", "[INST]"))
    ]
    vocabulary = [
        {"rank": i, "token_bytes": base64.b64encode(word).decode(), "token_str": None}
        for i, word in enumerate(words)
    ]
    config = {
        "pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|[^\s\p{L}\p{N}]+|\s+",
        "num_vocab_tokens": len(words),
        "default_vocab_size": len(words) + len(special), "version": "v3",
        "default_num_special_tokens": len(special),
    }  # fmt: skip
    return {"config": config, "vocab": vocabulary, "special_tokens": special}


def _write_sentences(path: Path) -> None:
    import sentencepiece

    text = ["the sun rises and the stars go out", "a model of a model", "0 1 2 3 4 5"] * 20
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text), model_writer=file, vocab_size=300, model_type="bpe",
            hard_vocab_limit=False, minloglevel=2, byte_fallback=True,
            normalization_rule_name="identity", remove_extra_whitespaces=False,
        )  # fmt: skip


def original(rng: random.Random, seeds: Path, folder: Path) -> str:
    """params.json or a consolidated file of a release."""
    kind = rng.choice(("meta", "mistral"))
    copied(seeds / "originals" / kind, folder)
    weights = rng.choice(sorted(folder.glob("consolidated*")))
    damaged = rng.randrange(3)
    if damaged == 0:
        rewrite_json(rng, folder / "params.json")
    elif damaged == 1 and kind == "mistral":
        retensor(rng, weights)
    elif damaged == 1:
        rewrite_archive(rng, weights, folder / "canary")
    else:
        rng.choice((weights.unlink, lambda: damage_file(rng, weights, 600)))()
    return kind
