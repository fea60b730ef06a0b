"""Torch and GGUF files behind a URL: read by ranges, with the values of local ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import torch2mlx
from mutations.seeds import tensors, write_gguf
from torch2mlx.sources import open_checkpoint
from torch2mlx.sources.remote.ahead import ReadAhead
from torch2mlx.sources.remote.files import RemoteFile

Place = Callable[[Path], tuple[str, Any]]


@pytest.fixture(params=["memory", "hub"])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def torch_folder(copied: Callable[..., Path]) -> Path:
    folder = copied("llama")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = weights[name].T.contiguous().T  # columns lie together
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


def _same(folder: Path, location: str) -> int:
    """Compare values; the bytes that all of them take."""
    here, there = open_checkpoint(folder), open_checkpoint(location)
    assert here.source.tensors.keys() == there.source.tensors.keys()
    for name in here.source.tensors:
        assert here.source.read(name).tobytes() == there.source.read(name).tobytes(), name
    there.source.close()
    return sum(info.nbytes for info in here.source.tensors.values())


def test_torch_files(torch_folder: Path, place: Place) -> None:
    location, traffic = place(torch_folder)
    size = (torch_folder / "pytorch_model.bin").stat().st_size
    torch2mlx.inspect(location)
    count = len(open_checkpoint(torch_folder).source.tensors)
    headers = traffic.of(".bin")
    assert headers <= 65536 * (count + 8)  # the table, the pickle, and where each storage begins
    data = _same(torch_folder, location)
    assert traffic.of(".bin") - 2 * headers < data + 2 * 65536
    assert data < size


def test_a_torch_file_is_converted_as_from_here(
    torch_folder: Path, memory: Place, tmp_path: Path
) -> None:
    location, _ = memory(torch_folder)
    for source, name in ((torch_folder, "here"), (location, "there")):
        torch2mlx.convert(source, tmp_path / name, quantize=True, verify=False)
    here, there = (tmp_path / n / "model.safetensors" for n in ("here", "there"))
    assert here.read_bytes() == there.read_bytes()


def test_gguf_files(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_gguf(folder / "model.gguf", tensors())
    (folder / ".gitattributes").write_text("*.gguf filter=lfs")
    location, traffic = place(folder)
    data = _same(folder, location)
    size = (folder / "model.gguf").stat().st_size
    assert data < traffic.of(".gguf") <= size + 3 * 65536
    here, there = open_checkpoint(folder), open_checkpoint(f"{location}/model.gguf")
    assert here.config == there.config
    found = there.tokenizer_files["tokenizer.json"].read_bytes()
    assert found == here.tokenizer_files["tokenizer.json"].read_bytes()


def test_storages_that_overlap_or_lie_apart() -> None:
    data = np.random.default_rng(0).bytes(1000)

    class System:
        def cat_file(self, path: str, start: int, end: int) -> bytes:
            return data[start:end]

    remote = RemoteFile(System(), "x", "m://x", len(data), "")
    reads = ReadAhead()
    spans = [(10, 400), (10, 400), (300, 500), (700, 900), (650, 650)]
    reads.learn(remote, spans)
    for start, end in spans:
        block = bytearray(end - start)
        reads.read_into(memoryview(block), remote, start)
        assert block == data[start:end]
    reads.close()
