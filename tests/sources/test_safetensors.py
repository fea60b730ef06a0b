"""safetensors files against the reference library, and every way a file can be wrong."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from torch2mlx.errors import SourceError
from torch2mlx.sources.safetensors import SafetensorsSource, read_header

ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def raw(path: Path, header: Any, data: bytes = bytes(24)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_rows_of_every_dtype_are_the_saved_bits(tmp_path: Path) -> None:
    names = (
        "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 int64 int32 int16 int8 "
        "uint64 uint32 uint16 uint8 bool"
    )
    numbers = torch.arange(24).reshape(4, 3, 2)
    tensors = {name: numbers.to(getattr(torch, name)) for name in names.split()}
    tensors["scalar"] = torch.tensor(2.5)
    tensors["empty"] = torch.empty(0, 3)
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    source = SafetensorsSource([tmp_path / "x.safetensors"])
    assert set(source.tensors) == set(tensors)
    for name, tensor in tensors.items():
        bits = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        block = source.read(name)
        assert block.shape == tuple(tensor.shape)
        assert block.flags.owndata or block.base.flags.owndata
        assert block.tobytes() == bits
        if tensor.ndim == 3:
            rows = tensor[1:3].reshape(-1).view(torch.uint8).numpy().tobytes()
            assert source.read(name, 1, 3).tobytes() == rows
            flat = tensor.reshape(-1)[5:17].view(torch.uint8).numpy().tobytes()
            assert source.read_flat(name, 5, 17).tobytes() == flat
    source.close()
    assert source.read("scalar").item() == 2.5  # handles open again when needed


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ({"w": {**ENTRY, "dtype": "F4"}}, 24, "dtype F4, which is not supported"),
        ({"w": {**ENTRY, "dtype": 7}}, 24, "malformed"),
        ({"w": {**ENTRY, "shape": "23"}}, 24, "malformed"),
        ({"w": {**ENTRY, "shape": [2, -3]}}, 24, "malformed"),
        ({"w": {**ENTRY, "shape": [2, True]}}, 24, "malformed"),
        ({"w": {"dtype": "F32", "shape": [2, 3]}}, 24, "malformed"),
        ({"w": 3}, 24, "malformed"),
        ({"w": {**ENTRY, "shape": [2, 2]}}, 24, "needs 16 bytes, its offsets span 24"),
        ({"w": ENTRY, "v": {**ENTRY, "data_offsets": [12, 36]}}, 36, "overlaps"),
        ({"w": ENTRY, "v": {**ENTRY, "data_offsets": [28, 52]}}, 52, "gap"),
        ({"w": ENTRY}, 23, r"truncated: tensor 'w' should end at"),
        ({"w": ENTRY}, 25, "1 bytes after the last tensor"),
        ([1], 24, "no JSON object"),
        (b"{oops", 24, "not a safetensors file"),
        (b'{"w": 1, "w": 2}', 0, "'w' occurs twice"),
        (b"\xff\xfe{}", 0, "not a safetensors file"),
    ],
)
def test_damage_is_named(header: Any, data: int, words: str, tmp_path: Path) -> None:
    path = raw(tmp_path / "bad.safetensors", header, bytes(data))
    with pytest.raises(SourceError, match=words) as caught:
        SafetensorsSource([path])
    assert str(path) in str(caught.value)


def test_files_that_are_no_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for content, words in [
        (b"", "truncated"),
        (b"1234567", "truncated"),
        (struct.pack("<Q", 1 << 60), "truncated"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 9\n", "git lfs pull"),
    ]:
        path.write_bytes(content)
        with pytest.raises(SourceError, match=words):
            read_header(path)
    with pytest.raises(SourceError, match="no such file"):
        read_header(tmp_path / "gone.safetensors")


def test_file_that_shrinks_after_opening(tmp_path: Path) -> None:
    path = raw(tmp_path / "x.safetensors", {"w": ENTRY})
    source = SafetensorsSource([path])
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(SourceError, match="ended inside tensor 'w'"):
        source.read("w")


def test_index_is_checked_against_headers(tmp_path: Path) -> None:
    a = raw(tmp_path / "a.safetensors", {"w": ENTRY})
    b = raw(tmp_path / "b.safetensors", {"v": ENTRY})
    assert set(SafetensorsSource([b, a], {"w": a.name, "v": b.name}).tensors) == {"v", "w"}
    with pytest.raises(SourceError, match=r"'w' in b\.safetensors, 'x' in a\.safetensors"):
        SafetensorsSource([a, b], {"w": b.name, "v": b.name, "x": a.name})
    raw(b, {"w": ENTRY})
    with pytest.raises(SourceError, match=r"'w' is in .*a\.safetensors and in b\.safetensors"):
        SafetensorsSource([a, b])


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_we_accept_the_reference_accepts(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Headers with random small damage: never a crash, never more lenient than the reference."""
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    header = bytearray(json.dumps({"w": ENTRY, "v": {**ENTRY, "data_offsets": [24, 48]}}).encode())
    for _ in range(data.draw(st.integers(1, 2))):
        header[data.draw(st.integers(0, len(header) - 1))] = data.draw(st.integers(32, 126))
    raw(path, bytes(header), np.arange(12, dtype="<f4").tobytes())
    try:
        ours = {name: info.shape for name, info in SafetensorsSource([path]).tensors.items()}
    except SourceError:
        return
    try:
        with safe_open(path, "np") as reference:
            names = list(reference.keys())
            theirs = {name: tuple(reference.get_slice(name).get_shape()) for name in names}
    except SafetensorError as error:
        pytest.fail(f"the reference refuses {bytes(header)!r}: {error}")
    assert ours == theirs
