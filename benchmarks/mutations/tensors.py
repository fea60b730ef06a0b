"""The tensors of a safetensors file, one by one: written, taken apart, damaged and joined."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Array", "header_and_values", "rejoin", "retensor", "save_tensors"]

Array = Any  # NumPy's, or PyTorch's where NumPy lacks the type


def save_tensors(
    stored: dict[str, Array], path: Path, header: dict[str, str] | None = None
) -> None:
    """Write tensors, with what the header says besides."""
    import torch
    from safetensors.torch import save_file

    found = {
        n: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for n, v in stored.items()
    }
    save_file(found, path, metadata={"format": "pt", **(header or {})})


def retensor(rng: random.Random, path: Path) -> None:
    """Remove, rename, reshape, cut, retype or fill tensors of a safetensors file."""
    header, values = header_and_values(path)
    for _ in range(rng.choice((1, 1, 2, 5))):
        name = rng.choice(sorted(values))
        entry, part = header[name], values[name]
        shape = entry["shape"]
        kind = rng.randrange(8)
        if kind == 0 and len(values) > 1:
            del header[name], values[name]
        elif kind == 1:
            new = rng.choice((name + "x", name.replace("0", "7"), ".", ""))
            header[new], values[new] = header.pop(name), values.pop(name)
        elif kind == 2:
            entry["shape"] = rng.choice((shape[::-1], [1, *shape], [_count(shape)], [*shape, 1]))
        elif kind == 3 and shape and shape[0] > 1:
            rows = shape[0] // 2
            entry["shape"] = [rows, *shape[1:]]
            values[name] = part[: len(part) // shape[0] * rows]
        elif kind == 4:
            same = [s for s in _SAME_SIZE if entry["dtype"] in s]
            entry["dtype"] = rng.choice(rng.choice(same) if same else (entry["dtype"],))
        elif kind == 5:
            values[name] = rng.choice((b"\x00", b"\xff", b"\x7f", b"\x80")) * len(part)
        elif kind == 6:
            values[name] = rng.randbytes(len(part))
        else:
            entry["shape"], values[name] = [0, *shape[1:]], b""
    rejoin(path, header, values)


def header_and_values(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The header of a safetensors file, and the bytes of each tensor."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    values = {
        name: data[start + e["data_offsets"][0] : start + e["data_offsets"][1]]
        for name, e in header.items()
        if name != "__metadata__"
    }
    return header, values


def rejoin(path: Path, header: dict[str, Any], values: dict[str, bytes]) -> None:
    """Write a safetensors file of these tensors, with offsets that fit."""
    position, written = 0, {k: v for k, v in header.items() if k == "__metadata__"}
    for name, part in values.items():
        span = [position, position + len(part)]
        written[name] = {**header[name], "data_offsets": span}
        position = span[1]
    text = json.dumps(written).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(values.values()))


_SAME_SIZE = (("F32", "I32", "U32"), ("F16", "BF16", "I16"), ("I8", "U8", "F8_E4M3", "BOOL"))


def _count(shape: list[int]) -> int:
    return int(np.prod(shape))
