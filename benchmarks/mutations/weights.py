"""Damaged weight files, their indexes and config.json."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

from mutations.damage import NUMBERS, copied, damage, damage_file, damage_json, rewrite_json

__all__ = ["config", "gguf", "index", "payload", "rewrite_archive", "safetensors", "torch_file"]


def safetensors(rng: random.Random, seeds: Path, folder: Path) -> str:
    """Bytes, header or length of a safetensors file."""
    path = copied(seeds / "safetensors", folder) / "model.safetensors"
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    kind = rng.randrange(4)
    if kind == 0:
        path.write_bytes(damage(rng, data, start))
        return "bytes"
    header = json.loads(data[8:start])
    for _ in range(rng.choice((1, 1, 3))):
        header = damage_json(rng, header)
    try:
        text = json.dumps(header).encode("utf-8", "surrogatepass")
    except (RecursionError, ValueError):
        text = b"[" * 5000
    if kind == 1:
        text = damage(rng, text)
    length = len(text) if kind < 3 else rng.choice(NUMBERS)
    path.write_bytes(struct.pack("<Q", length) + text + data[start:])
    return "header"


def index(rng: random.Random, seeds: Path, folder: Path) -> str:
    """An index, the files that it names, or links in their place."""
    copied(seeds / "sharded", folder)
    path = folder / "model.safetensors.index.json"
    kind = rng.randrange(4)
    if kind == 0:
        damage_file(rng, path)
    elif kind == 1:
        shard = rng.choice(sorted(folder.glob("*.safetensors")))
        rng.choice((shard.unlink, lambda: damage_file(rng, shard, 400)))()
    elif kind == 2:
        shard = rng.choice(sorted(folder.glob("*.safetensors")))
        shard.unlink()
        shard.symlink_to(rng.choice(("/etc/passwd", "../x.safetensors", shard.name, "/dev/zero")))
    else:
        rewrite_json(rng, path)
    return "index"


def config(rng: random.Random, seeds: Path, folder: Path) -> str:
    """config.json or generation_config.json."""
    copied(seeds / rng.choice(("safetensors", "mlx")), folder)
    path = folder / rng.choice(("config.json", "config.json", "generation_config.json"))
    path = path if path.exists() else folder / "config.json"
    if rng.randrange(5) == 0:
        damage_file(rng, path)
    else:
        rewrite_json(rng, path)
    return path.name


def torch_file(rng: random.Random, seeds: Path, folder: Path) -> str:
    """The archive, the pickle or a record of a torch file."""
    path = copied(seeds / "torch", folder) / "pytorch_model.bin"
    if rng.randrange(4) == 0:
        data = path.read_bytes()
        tail = max(0, len(data) - 4000)
        head, rest = (data[:tail], data[tail:]) if rng.random() < 0.6 else (b"", data)
        path.write_bytes(head + damage(rng, rest, 4000))
        return "archive"
    rewrite_archive(rng, path, folder / "canary")
    return "pickle"


def rewrite_archive(rng: random.Random, path: Path, canary: Path) -> None:
    """Damage the pickle or a record of a torch file, which stays a zip archive.

    Args:
        rng: random numbers.
        path: of the file.
        canary: file that a payload makes.
    """
    records = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            records[info.filename] = archive.read(info)
    name = next(name for name in records if name.endswith("/data.pkl"))
    kind = rng.randrange(3)
    if kind == 0:
        records[name] = damage(rng, records[name])
    elif kind == 1:
        records[name] = _program(rng, records[name], canary)
    else:
        victim = rng.choice(sorted(records))
        records[victim] = rng.choice((b"", records[victim][:7], rng.randbytes(99)))
    method = rng.choice((zipfile.ZIP_STORED,) * 5 + (zipfile.ZIP_DEFLATED,))
    with zipfile.ZipFile(path, "w", method) as archive:
        for record, data in records.items():
            archive.writestr(record, data)


class _Payload:
    """Leaves a file behind where a pickle is executed."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


def payload(canary: Path) -> bytes:
    """A pickle that makes a file where it is executed."""
    return pickle.dumps({"w": _Payload(str(canary))}, protocol=2)


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
        return payload(canary)
    if kind == 1:
        return b"\x80\x02" + rng.choice(_FRAGMENTS[:8]) * rng.choice((10, 10_000, 300_000)) + b"."
    text = bytearray(original)
    for _ in range(rng.choice((1, 2, 6))):
        at = rng.randrange(2, len(text))
        text[at:at] = rng.choice(_FRAGMENTS) * rng.choice((1, 1, 1, 40))
    return bytes(text)


def gguf(rng: random.Random, seeds: Path, folder: Path) -> str:
    """The header of a GGUF file, or nested arrays."""
    path = copied(seeds / "gguf", folder) / "model.gguf"
    data = path.read_bytes()
    if rng.random() < 0.15:
        buffer = io.BytesIO()
        buffer.write(b"GGUF" + struct.pack("<IQQ", 3, 0, rng.choice(NUMBERS[:6])))
        for _ in range(rng.choice((1, 50))):
            buffer.write(struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9))
            for _ in range(rng.choice((1, 30, 3000))):
                buffer.write(struct.pack("<IQ", 9, rng.choice((1, 1, 2, 4096, 2**60))))
        path.write_bytes(buffer.getvalue())
        return "arrays"
    path.write_bytes(damage(rng, data, 3500))
    return "bytes"
