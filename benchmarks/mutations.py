"""Small valid inputs of every format that torch2mlx reads, and ways of damaging them.

A case is a number: the same number and seed give the same bytes, so a case that is found can be
named in a test.  `fuzz.py` runs many; the tests run some.
"""

from __future__ import annotations

import io
import json
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["FORMATS", "Mutate", "make_seeds", "mutate_case"]

Mutate = Callable[[random.Random, Path, Path], str]
WIDTH, ROWS, LAYERS = 32, 48, 2

_CONFIG: dict[str, Any] = {
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


def _tensors() -> dict[str, np.ndarray[Any, Any]]:
    values = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (ROWS, WIDTH),
        "model.norm.weight": (WIDTH,),
        "lm_head.weight": (ROWS, WIDTH),
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


def make_seeds(root: Path) -> dict[str, Path]:
    """Write a valid checkpoint folder of each kind; returns them by name."""
    import torch
    from safetensors.numpy import save_file

    tensors = _tensors()
    seeds = {kind: root / kind for kind in ("safetensors", "sharded", "torch", "gguf", "mlx")}
    for folder in seeds.values():
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(_CONFIG))
    generation = {"eos_token_id": [2], "transformers_version": "5.0.0"}
    (seeds["safetensors"] / "generation_config.json").write_text(json.dumps(generation))
    save_file(tensors, seeds["safetensors"] / "model.safetensors", metadata={"format": "pt"})
    names = sorted(tensors)
    parts = {"1": names[: len(names) // 2], "2": names[len(names) // 2 :]}
    weight_map = {}
    for part, own in parts.items():
        file = f"model-0000{part}-of-00002.safetensors"
        save_file({n: tensors[n] for n in own}, seeds["sharded"] / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(own, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (seeds["sharded"] / "model.safetensors.index.json").write_text(json.dumps(index))
    state = {name: torch.from_numpy(array) for name, array in tensors.items()}
    torch.save({"model": state, "epoch": 3}, seeds["torch"] / "pytorch_model.bin")
    _write_gguf(seeds["gguf"] / "model.gguf", tensors)
    (seeds["gguf"] / "config.json").unlink()
    _write_mlx(seeds["mlx"], tensors)
    return seeds


def _write_gguf(path: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
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
    for name, array in tensors.items():
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


def _write_mlx(folder: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    import mlx.core as mx

    stored = {}
    for name, array in tensors.items():
        if array.ndim == 2 and name.endswith("proj.weight"):
            module = name.removesuffix(".weight")
            parts = mx.quantize(mx.array(array), group_size=32, bits=4)
            stored |= zip((name, f"{module}.scales", f"{module}.biases"), parts, strict=True)
        else:
            stored[name] = mx.array(array)
    mx.save_safetensors(str(folder / "model.safetensors"), stored, metadata={"format": "mlx"})
    entry = {"group_size": 32, "bits": 4, "mode": "affine"}
    skipped = {"model.embed_tokens": False, "lm_head": False}
    config = _CONFIG | {"quantization": entry | skipped}
    (folder / "config.json").write_text(json.dumps(config))


# Damage to bytes, wherever they are.

_NUMBERS = (
    *(0, 1, 2**7, 2**8, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32),
    *(2**62, 2**63, 2**64 - 1),
)
_TOKENS = (
    *(b"\x00", b"\xff" * 8, b"[" * 500, b'{"a":' * 400, b"-1", b"1e999", b"null"),
    b"\xed\xa0\x80",
)


def _damage(rng: random.Random, data: bytes, upto: int | None = None) -> bytes:
    """Change a few bytes, mostly near the start, where headers are."""
    text = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        reach = min(len(text), upto or len(text))
        at = rng.randrange(reach + 1)
        kind = rng.randrange(7)
        if kind == 0 and text:
            text[min(at, len(text) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            text[at : at + 1] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 2:
            del text[at : at + rng.randrange(1, 64)]
        elif kind == 3:
            piece = text[at : at + rng.randrange(1, 64)]
            text[at:at] = piece
        elif kind == 4:
            code = rng.choice(("<I", "<Q"))
            number = rng.choice(_NUMBERS) & (2 ** (8 * struct.calcsize(code)) - 1)
            text[at : at + struct.calcsize(code)] = struct.pack(code, number)
        elif kind == 5:
            text[at:at] = rng.choice(_TOKENS)
        else:
            del text[rng.randrange(len(text) + 1) :]
    return bytes(text)


def _damage_file(rng: random.Random, path: Path, upto: int | None = None) -> None:
    path.write_bytes(_damage(rng, path.read_bytes(), upto))


# Damage to JSON, so that it stays JSON.

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.0, -0.5, 1e308,
    float("inf"), float("nan"), "", "x", "../../../etc/passwd", "/etc/passwd", "\x00", "\x1b[2J",
    "\ud800", "ключ", "x" * 5000, [], [[]], {}, {"": {}}, [1, 2, 3], ["a"], {"a": 1}, [None] * 50,
    "__import__('os').system('true')", "{{ 7 * 7 }}", "model.safetensors", "float16", "int128",
)  # fmt: skip


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def _damage_json(rng: random.Random, value: Any) -> Any:
    """Replace, remove, add or rename something at a random place of a JSON tree."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        result = dict(value)
        kind = rng.randrange(6)
        if kind <= 2:
            result[key] = _damage_json(rng, value[key])
        elif kind == 3:
            del result[key]
        elif kind == 4:
            result[str(rng.choice(_VALUES))[:50]] = rng.choice(_VALUES)
        else:
            result[key] = value[rng.choice(list(value))]
        return result
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], _damage_json(rng, value[at]), *value[at + rng.randrange(2) :]]
    if isinstance(value, int) and rng.random() < 0.3:
        return rng.choice((value + 1, value - 1, -value, value * 1000, value * 2**40, str(value)))
    return _nested(rng.choice((5, 100, 3000))) if rng.random() < 0.03 else rng.choice(_VALUES)


def _rewrite_json(rng: random.Random, path: Path) -> None:
    value = json.loads(path.read_text())
    for _ in range(rng.choice((1, 1, 2, 4))):
        value = _damage_json(rng, value)
    try:
        text = json.dumps(value)
    except (RecursionError, ValueError):
        text = "[" * 5000
    path.write_text(text, encoding="utf-8")


def _copied(seed: Path, folder: Path) -> Path:
    shutil.copytree(seed, folder)
    return folder


# The formats.


def _safetensors(rng: random.Random, seeds: Path, folder: Path) -> str:
    path = _copied(seeds / "safetensors", folder) / "model.safetensors"
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    kind = rng.randrange(4)
    if kind == 0:
        path.write_bytes(_damage(rng, data, start))
        return "bytes"
    header = json.loads(data[8:start])
    for _ in range(rng.choice((1, 1, 3))):
        header = _damage_json(rng, header)
    try:
        text = json.dumps(header).encode("utf-8", "surrogatepass")
    except (RecursionError, ValueError):
        text = b"[" * 5000
    if kind == 1:
        text = _damage(rng, text)
    length = len(text) if kind < 3 else rng.choice(_NUMBERS)
    path.write_bytes(struct.pack("<Q", length) + text + data[start:])
    return "header"


def _index(rng: random.Random, seeds: Path, folder: Path) -> str:
    _copied(seeds / "sharded", folder)
    path = folder / "model.safetensors.index.json"
    kind = rng.randrange(4)
    if kind == 0:
        _damage_file(rng, path)
    elif kind == 1:
        shard = rng.choice(sorted(folder.glob("*.safetensors")))
        rng.choice((shard.unlink, lambda: _damage_file(rng, shard, 400)))()
    elif kind == 2:
        shard = rng.choice(sorted(folder.glob("*.safetensors")))
        shard.unlink()
        shard.symlink_to(rng.choice(("/etc/passwd", "../x.safetensors", shard.name, "/dev/zero")))
    else:
        _rewrite_json(rng, path)
    return "index"


def _config(rng: random.Random, seeds: Path, folder: Path) -> str:
    _copied(seeds / rng.choice(("safetensors", "mlx")), folder)
    path = folder / rng.choice(("config.json", "config.json", "generation_config.json"))
    path = path if path.exists() else folder / "config.json"
    if rng.randrange(5) == 0:
        _damage_file(rng, path)
    else:
        _rewrite_json(rng, path)
    return path.name


def _torch(rng: random.Random, seeds: Path, folder: Path) -> str:
    path = _copied(seeds / "torch", folder) / "pytorch_model.bin"
    kind = rng.randrange(4)
    if kind == 0:
        data = path.read_bytes()
        tail = max(0, len(data) - 4000)
        head, rest = (data[:tail], data[tail:]) if rng.random() < 0.6 else (b"", data)
        path.write_bytes(head + _damage(rng, rest, 4000))
        return "archive"
    records = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            records[info.filename] = archive.read(info)
    name = next(name for name in records if name.endswith("/data.pkl"))
    if kind == 1:
        records[name] = _damage(rng, records[name])
    elif kind == 2:
        records[name] = _program(rng, records[name], folder / "canary")
    else:
        victim = rng.choice(sorted(records))
        records[victim] = rng.choice((b"", records[victim][:7], rng.randbytes(99)))
    method = rng.choice((zipfile.ZIP_STORED,) * 5 + (zipfile.ZIP_DEFLATED,))
    with zipfile.ZipFile(path, "w", method) as archive:
        for record, data in records.items():
            archive.writestr(record, data)
    return "pickle"


class _Payload:
    """Leaves a file behind where a pickle is executed."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


_FRAGMENTS = (
    b"}", b"]", b")", b"(", b"l", b"d", b"t", b"0", b"2", b"1", b"N", b"\x88", b"\x89", b"a", b"e",
    b"s", b"u", b"b", b"R", b"o", b"\x81", b"\x85", b"\x86", b"\x87", b"Q", b"\x8f", b"\x90",
    b"\x93", b"\x94", b"r\xff\xff\xff\xff", b"j\xff\xff\xff\xff", b"q\x00", b"h\x00",
    b"ccollections\nCounter\n", b"ccollections\nOrderedDict\n", b"cos\nsystem\n",
    b"cbuiltins\neval\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"c_codecs\nencode\n",
    b"X\x04\x00\x00\x00name", b"X\xff\xff\xff\x7f", b"\x8a\xff" + b"\x7f" * 255, b"K\x05",
    b"J\xff\xff\xff\xff", b"I99999999999999999999\n", b"\x8d" + b"\xff" * 8,
    b"\x95" + b"\xff" * 8, b".", b"P0\n", b"\x82\x01",
)  # fmt: skip


def _program(rng: random.Random, original: bytes, canary: Path) -> bytes:
    """A pickle with foreign instructions: bombs, calls, type confusion."""
    kind = rng.randrange(4)
    if kind == 0:
        return pickle.dumps({"w": _Payload(str(canary))}, protocol=2)
    if kind == 1:
        return b"\x80\x02" + rng.choice(_FRAGMENTS[:8]) * rng.choice((10, 10_000, 300_000)) + b"."
    text = bytearray(original)
    for _ in range(rng.choice((1, 2, 6))):
        at = rng.randrange(2, len(text))
        text[at:at] = rng.choice(_FRAGMENTS) * rng.choice((1, 1, 1, 40))
    return bytes(text)


def _gguf(rng: random.Random, seeds: Path, folder: Path) -> str:
    path = _copied(seeds / "gguf", folder) / "model.gguf"
    data = path.read_bytes()
    if rng.random() < 0.15:
        buffer = io.BytesIO()
        buffer.write(b"GGUF" + struct.pack("<IQQ", 3, 0, rng.choice(_NUMBERS[:6])))
        for _ in range(rng.choice((1, 50))):
            buffer.write(struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9))
            for _ in range(rng.choice((1, 30, 3000))):
                buffer.write(struct.pack("<IQ", 9, rng.choice((1, 1, 2, 4096, 2**60))))
        path.write_bytes(buffer.getvalue())
        return "arrays"
    path.write_bytes(_damage(rng, data, 3500))
    return "bytes"


FORMATS: dict[str, Mutate] = {
    "safetensors": _safetensors,
    "index": _index,
    "config": _config,
    "torch": _torch,
    "gguf": _gguf,
}


def mutate_case(number: int, seed: int, seeds: Path, folder: Path) -> tuple[str, str]:
    """Write case `number` to a folder that does not exist yet; returns its format and kind."""
    formats = list(FORMATS)
    name = formats[number % len(formats)]
    rng = random.Random(f"{seed}:{number}")
    return name, FORMATS[name](rng, seeds, folder)
