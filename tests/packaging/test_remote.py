"""Destinations behind a URL: nothing there looks complete before it is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import torch2mlx
from torch2mlx.errors import DestinationError, OptionError
from torch2mlx.packaging.remote import RemoteDestination
from torch2mlx.sources.remote import files

URL = "memory://u:secret@shelf/out"


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryFileSystem]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "PAUSES", (0.0, 0.0))
    system = MemoryFileSystem()
    yield system
    for name in system.ls("/", detail=False):
        system.rm(name, recursive=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    (made / "additional_chat_templates").mkdir(parents=True)
    for name in (
        "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json", "tokenizer.json", "additional_chat_templates/x.jinja",
    ):  # fmt: skip
        (made / name).write_text(name)
    return made


def test_config_is_last_and_interruption_shows_no_model(
    memory: MemoryFileSystem, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put: list[str] = []
    plain = MemoryFileSystem.put_file

    def put_file(self: Any, source: str, target: str, **options: Any) -> None:
        put.append(target.rpartition("/out/")[2])
        if len(put) == stop:
            raise KeyboardInterrupt
        if len(put) == drop:
            raise ConnectionResetError("connection reset by https://k:secret@host")
        plain(self, source, target, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)
    remote, stop, drop = RemoteDestination("memory://shelf/out"), 6, 0
    with pytest.raises(KeyboardInterrupt):
        remote.upload(folder, lambda _: None)
    assert put[-2:] == ["model.safetensors.index.json", "config.json"]
    assert not memory.exists("/shelf/out/config.json")
    with pytest.raises(DestinationError, match="exists already"):
        remote.require_new(begun=False)  # something of somebody else
    stop, drop = 0, len(put) + 2
    arrived: list[int] = []
    remote.upload(folder, arrived.append)
    assert len(arrived) == 6
    for path in folder.rglob("*.*"):
        assert memory.cat_file(f"/shelf/out/{path.relative_to(folder)}") == path.read_bytes()
    with pytest.raises(DestinationError, match="exists already"):
        remote.upload(folder, arrived.append)


def test_a_broken_connection_keeps_what_is_local(
    memory: MemoryFileSystem, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put_file(*_: Any, **__: Any) -> None:
        raise ConnectionResetError("reset by https://k:secret@host/x?sig=secret")

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)
    with pytest.raises(DestinationError, match="after 3 attempts: reset by https://host/x") as got:
        RemoteDestination(URL).upload(folder, lambda _: None)
    assert "secret" not in str(got.value)


def test_convert_uploads_what_was_verified(
    memory: MemoryFileSystem,
    checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = checkpoint("llama")

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RemoteDestination, "_put", fail)
        with pytest.raises(KeyboardInterrupt):
            torch2mlx.convert(source, "memory://shelf/out")
    (local,) = tmp_path.glob("out.upload-*")
    files = [path for path in local.rglob("*") if path.is_file()]
    made = {path.relative_to(local).as_posix(): path.read_bytes() for path in files}
    with pytest.raises(DestinationError, match="waits to be uploaded"):
        torch2mlx.convert(source, "memory://shelf/out", dtype="float16")
    result = torch2mlx.convert(source, "memory://shelf/out")
    assert str(result.destination) == "memory://shelf/out"
    assert not local.exists()
    there = {name.removeprefix("/shelf/out/") for name in memory.find("/shelf/out")}
    assert there == set(made)
    assert all(memory.cat_file(f"/shelf/out/{name}") == data for name, data in made.items())
    with pytest.raises(DestinationError, match="exists already"):
        torch2mlx.convert(source, "memory://shelf/out")
    with pytest.raises(OptionError, match="--also"):
        torch2mlx.convert(source, "memory://shelf/other", also=["bf16"], quantize=True)


def test_a_repository_takes_one_commit(
    memory: MemoryFileSystem, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    class Api:
        files: tuple[str, ...] = (".gitattributes",)

        def repo_exists(self, repo_id: str) -> bool:
            return True

        def list_repo_files(self, repo_id: str) -> list[str]:
            return list(self.files)

        def create_repo(self, *, repo_id: str, exist_ok: bool) -> str:
            calls.append(f"create {repo_id}")
            return "address"

        def upload_folder(self, *, repo_id: str, folder_path: Path, **_: Any) -> None:
            calls.append(f"upload {folder_path.name}")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    remote = RemoteDestination("hf://me/model")
    remote.upload(folder, lambda _: None)
    assert calls == ["create me/model", "upload made"]
    Api.files = ("config.json",)
    with pytest.raises(DestinationError, match="hf://me/model exists already"):
        remote.require_new(begun=True)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("hf://me", "names no folder"),
        ("memory://", "names no folder"),
        ("https://me:secret@host/out", "https://host/out: web servers take no folders"),
        ("s3://k:secret@bucket/out", r"pip install 'torch2mlx\[s3\]'"),
    ],
)
def test_urls_that_cannot_be_written(
    memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, url: str, words: str
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as where it is not installed
    with pytest.raises(DestinationError, match=words) as caught:
        RemoteDestination(url)
    assert "secret" not in str(caught.value)
