"""Damaged checkpoints whose tensors describe themselves: HQQ in tensors, torchao in the header."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np

from mutations.damage import NUMBERS, copied, damage_json
from mutations.packed import random_scales, resettle, write_packed
from mutations.tensors import Array, header_and_values, rejoin, retensor

__all__ = ["described_seeds", "hqq", "torchao"]

_GROUP = 32
_TEXTS = ("4bit_u8", "8bit_u8", "3bit_32", "torch.float16", "torch.bfloat16", "", "\xe9", "x" * 80)
_SETTINGS = ("nbits", "group_size", "axis", "shape", "packing", "compute_dtype")


def described_seeds(root: Path) -> None:
    """Write a valid folder of each."""
    write_packed(root / "packed" / "hqq", {"quant_method": "hqq", "quant_config": {}}, _hqq)
    write_packed(root / "packed" / "torchao", {"quant_method": "torchao"}, _torchao, _description)


def _hqq(rng: np.random.Generator, out: int, width: int) -> dict[str, Array]:
    groups = out * width // _GROUP
    numbers = {"nbits": [4], "group_size": [_GROUP], "axis": [1], "shape": [out, width]}
    texts = {"packing": "4bit_u8", "compute_dtype": "torch.float16"}
    return {
        "W_q": rng.integers(0, 256, (groups // 2, _GROUP), np.uint8),
        "scale": random_scales(rng, (groups, 1)).astype(np.float16),
        "zero": rng.uniform(0, 15, (groups, 1)).astype(np.float16),
        **{name: np.array(value) for name, value in numbers.items()},
        **{name: np.array(list(text.encode())) for name, text in texts.items()},
    }


def _torchao(rng: np.random.Generator, out: int, width: int) -> dict[str, Array]:
    return {
        "_weight_qdata": rng.integers(-8, 8, (out, width), np.int8),
        "_weight_scale": random_scales(rng, (out, width // _GROUP)),
        "_weight_zero_point": rng.integers(-8, 8, (out, width // _GROUP), np.int8),
    }


def _description() -> str:
    """What torchao says of a weight in the header."""
    described = {
        "_type": "IntxUnpackedToInt8Tensor",
        "_data": {
            "target_dtype": {"_type": "torch.dtype", "_data": "int4"},
            "block_size": [1, _GROUP],
            "dtype": {"_type": "torch.dtype", "_data": "float32"},
        },
        "_tensor_data_names": ["qdata", "scale", "zero_point"],
    }
    return json.dumps(described)


def hqq(rng: random.Random, seeds: Path, folder: Path) -> str:
    """Settings that are tensors, the others, or config.json."""
    path = copied(seeds / "packed" / "hqq", folder) / "model.safetensors"
    kind = rng.randrange(4)
    if kind == 0:
        resettle(rng, folder / "config.json")
        return "config"
    if kind == 1:
        retensor(rng, path)
        return "tensors"
    header, values = header_and_values(path)
    for _ in range(rng.choice((1, 1, 2, 4))):
        name = rng.choice([n for n in sorted(header) if n.endswith(_SETTINGS)])
        values[name] = _setting(rng, values[name])
        header[name] = {"dtype": "I64", "shape": [len(values[name]) // 8]}
        if rng.random() < 0.1:
            header[name] = {"dtype": "F64", "shape": rng.choice(([len(values[name]) // 8], []))}
    rejoin(path, header, values)
    return "settings"


def _setting(rng: random.Random, before: bytes) -> bytes:
    """Other numbers or another text in the place of a setting."""
    if rng.random() < 0.4:
        return np.array([ord(c) for c in rng.choice(_TEXTS)], np.int64).tobytes()
    numbers = np.frombuffer(before, np.int64).copy()
    if len(numbers) and rng.random() < 0.7:
        at = rng.randrange(len(numbers))
        near = int(numbers[at]) + rng.choice((-1, 1, 2, -int(numbers[at]) - 1))
        numbers[at] = rng.choice((near, np.uint64(rng.choice(NUMBERS)).astype(np.int64)))
        return numbers.tobytes()
    return rng.choice((b"", before * 2, before[:8], before[8:]))


def torchao(rng: random.Random, seeds: Path, folder: Path) -> str:
    """What the header says of weights, the tensors, or config.json."""
    path = copied(seeds / "packed" / "torchao", folder) / "model.safetensors"
    kind = rng.randrange(4)
    if kind == 0:
        resettle(rng, folder / "config.json")
        return "config"
    if kind == 1:
        retensor(rng, path)
        return "tensors"
    header, values = header_and_values(path)
    metadata = header["__metadata__"]
    for _ in range(rng.choice((1, 1, 2, 4))):
        name = rng.choice([n for n in sorted(metadata) if n != "format"])
        try:
            metadata[name] = json.dumps(damage_json(rng, json.loads(metadata[name])))
        except (RecursionError, ValueError):
            metadata[name] = rng.choice(("[" * 5000, "", "null"))
        if rng.random() < 0.1:
            metadata[rng.choice(("lm_head.weight", "x.y", "."))] = metadata.pop(name)
    rejoin(path, header, values)
    return "header"
