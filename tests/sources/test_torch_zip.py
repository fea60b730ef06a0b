"""torch files against torch.load: views, dtypes, nesting, and what must not be run."""

from __future__ import annotations

import collections
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from torch2mlx.dtypes import dtype_from_torch
from torch2mlx.errors import SourceError
from torch2mlx.sources import open_checkpoint
from torch2mlx.sources import torch_zip as module
from torch2mlx.sources.torch_zip import TorchZipSource


def saved(value: Any, path: Path) -> Path:
    torch.save(value, path)
    return path


def bits(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


@pytest.fixture
def views() -> dict[str, torch.Tensor]:
    base = torch.randn(12, 10)
    cube = torch.randn(6, 7, 8)
    return {
        "base": base,
        "tied": base,
        "transposed": base.t(),
        "strided": base[2:9:3, 1::2],
        "row": base[3],
        "column": base[:, 4],
        "expanded": base[:1].expand(5, 10),
        "permuted": cube.permute(2, 0, 1),
        "conv": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "parameter": torch.nn.Parameter(torch.randn(3, 2)),
        "unit": torch.randn(1, 5).t(),
    }


def check(source: TorchZipSource, tensors: dict[str, torch.Tensor]) -> None:
    assert set(source.tensors) == set(tensors)
    for name, tensor in tensors.items():
        info = source.tensors[name]
        assert (info.dtype, info.shape) == (dtype_from_torch(tensor.dtype), tuple(tensor.shape))
        block = source.read(name)
        assert block.shape == info.shape
        assert block.flags.c_contiguous
        assert block.flags.writeable
        assert block.tobytes() == bits(tensor), name
        if tensor.ndim and tensor.shape[0] > 2:
            assert source.read(name, 1, 3).tobytes() == bits(tensor[1:3]), name
            flat = tensor.detach().reshape(-1)[2:]
            assert source.read_flat(name, 2, tensor.numel()).tobytes() == bits(flat), name
            assert source.read(name, 1, 1).shape == (0, *tensor.shape[1:])


@pytest.mark.parametrize("buffer", [1 << 20, 64, 4])
def test_views(
    views: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffer: int
) -> None:
    monkeypatch.setattr(module, "_BUFFER", buffer)
    check(TorchZipSource([saved(views, tmp_path / "x.pt")]), views)


def test_strided_reads_stay_within_the_buffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BUFFER", 1 << 14)
    tensors = {"w": torch.randn(256, 1024).t()}
    source = TorchZipSource([saved(tensors, tmp_path / "x.pt")])
    sizes = []
    fill = source._reads.fill

    def counted(block: np.ndarray, *args: Any) -> None:
        sizes.append(block.nbytes)
        fill(block, *args)

    monkeypatch.setattr(source._reads, "fill", counted)
    assert source.read("w", 100, 164).tobytes() == bits(tensors["w"][100:164])
    assert max(sizes) <= 1 << 14


def test_every_dtype(tmp_path: Path) -> None:
    numbers = torch.tensor([0.0, 1.0, 2.0, 100.0])
    names = (
        "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 int64 int32 int16 int8 "
        "uint64 uint32 uint16 uint8 bool complex64"
    )
    tensors = {name: numbers.to(getattr(torch, name)) for name in names.split()}
    check(TorchZipSource([saved(tensors, tmp_path / "x.pt")]), tensors)


def test_files_without_checksums(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4)}
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tensors, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    check(TorchZipSource([path]), tensors)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_module_state_dict(tmp_path: Path, protocol: int) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    torch.save(net.state_dict(), tmp_path / "x.pth", pickle_protocol=protocol)
    check(TorchZipSource([tmp_path / "x.pth"]), net.state_dict())


@pytest.mark.parametrize("key", ["state_dict", "model", "module", "model_state_dict", "generator"])
def test_nesting_is_unwrapped_and_noted(tmp_path: Path, key: str) -> None:
    weights = {"a.weight": torch.randn(2, 3)}
    path = saved(
        {key: weights, "optimizer": {"state": {0: {"step": 3}}}, "epoch": 7, "args": None},
        tmp_path / "x.pt",
    )
    source = TorchZipSource([path])
    check(source, weights)
    assert any(repr(key) in note for note in source.notes)
    assert any("optimizer" in note and "epoch" in note for note in source.notes)


def test_prefixes_of_wrappers_are_taken_off(tmp_path: Path) -> None:
    net = torch.nn.Linear(2, 2)
    wrapped = {f"module._orig_mod.{k}": v for k, v in net.state_dict().items()}
    source = TorchZipSource([saved({"model": {"state_dict": wrapped}}, tmp_path / "x.pt")])
    check(source, dict(net.state_dict()))
    assert any("prefix" in note for note in source.notes)


def test_sharded_checkpoint(tmp_path: Path) -> None:
    shards = [{"a": torch.randn(3)}, {"b": torch.randn(2, 2)}]
    names = [f"pytorch_model-{i + 1:05d}-of-00002.bin" for i in range(2)]
    for name, shard in zip(names, shards, strict=True):
        torch.save(shard, tmp_path / name)
    index = {"metadata": {}, "weight_map": {"a": names[0], "b": names[1]}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    torch.save({"lr": 1}, tmp_path / "training_args.bin")
    torch.save({"lr": 1}, tmp_path / "optimizer.pt")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.kind == "torch"
    assert set(checkpoint.state) == {"a", "b"}
    assert checkpoint.source.read("b").tobytes() == bits(shards[1]["b"])
    torch.save(shards[0] | shards[1], tmp_path / names[1])
    with pytest.raises(SourceError, match=r"'a' is in .*00001.*00002"):
        open_checkpoint(tmp_path)


class Trap:
    """A value whose pickle would leave a file behind if anything ran it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_other_globals_are_named_and_not_run(tmp_path: Path) -> None:
    sign = tmp_path / "was-run"
    path = saved({"w": torch.ones(2), "x": Trap(sign)}, tmp_path / "x.pt")
    with pytest.raises(SourceError, match=r"names posix\.mkdir.*nothing was run") as caught:
        TorchZipSource([path])
    assert not sign.exists()
    assert str(path) in str(caught.value)
    whole = saved(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(SourceError, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict\(\)"):
        TorchZipSource([whole])


def test_containers_that_torch_allows(tmp_path: Path) -> None:
    value = {
        "w": torch.ones(2),
        "size": torch.Size([1, 2]),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "order": collections.OrderedDict(a=1),
        "set": {1, 2},
        "bytes": b"\xff\x00",
    }
    source = TorchZipSource([saved(value, tmp_path / "x.pt")])
    assert set(source.tensors) == {"w"}
    assert any("size" in note and "device" in note for note in source.notes)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_formats_that_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(SourceError, match=r"before torch 1\.6; save it again"):
        TorchZipSource([path])
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(SourceError, match=r"TorchScript archive.*torch\.jit\.load"):
        TorchZipSource([path])
    for value, words in [
        ([torch.ones(2)], "found a list"),
        ({}, "found no tensors"),
        ({"a": {"w": torch.ones(1)}, "b": {"w": torch.ones(1)}}, "several groups of tensors"),
        ({"w": torch.ones(2).to_sparse()}, "_rebuild_sparse_tensor"),
    ]:
        with pytest.raises(SourceError, match=words):
            TorchZipSource([saved(value, path)])


def test_damaged_files(tmp_path: Path) -> None:
    good = saved({"w": torch.randn(100, 100)}, tmp_path / "good.pt").read_bytes()
    path = tmp_path / "x.pt"
    for content, words in [
        (good[:-2000], "truncated"),
        (b"", "not a torch file"),
        (b"hello world", "not a torch file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ]:
        path.write_bytes(content)
        with pytest.raises(SourceError, match=words) as caught:
            TorchZipSource([path])
        assert str(path) in str(caught.value)
    with zipfile.ZipFile(tmp_path / "good.pt") as old, zipfile.ZipFile(path, "w") as new:
        for record in old.infolist():
            content = old.read(record)
            new.writestr(record.filename, content[:100] if "/data/" in record.filename else content)
    with pytest.raises(SourceError, match="'w' reaches beyond its storage"):
        TorchZipSource([path])
    with zipfile.ZipFile(tmp_path / "good.pt") as old, zipfile.ZipFile(path, "w", 8) as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
    with pytest.raises(SourceError, match="compressed"):
        TorchZipSource([path])


def test_a_pickle_that_holds_itself_ends(tmp_path: Path) -> None:
    value: dict[str, Any] = {"w": torch.ones(2)}
    value["model"] = value
    source = TorchZipSource([saved(value, tmp_path / "x.pt")])
    check(source, {"w": value["w"]})
