"""Checkpoints behind a URL or on a hub: what is read, when, and how little of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from safetensors import safe_open

import torch2mlx
from torch2mlx.conversion import executor
from torch2mlx.conversion.identity import SourceState
from torch2mlx.errors import SourceError
from torch2mlx.progress import Silent
from torch2mlx.sources import open_checkpoint

Place = Callable[[Path], tuple[str, Any]]


@pytest.fixture(params=["memory", "hub"])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def large(checkpoint: Callable[..., Path]) -> Path:
    """Several files."""
    return checkpoint("llama", shard_size="500KB")


def test_inspect_and_plan_read_headers_alone(large: Path, place: Place) -> None:
    location, traffic = place(large)
    weights = sum(path.stat().st_size for path in large.glob("*.safetensors"))
    here, there = torch2mlx.inspect(large), torch2mlx.inspect(location)
    assert {**here.to_dict(), "location": location} == there.to_dict()
    assert traffic.of("safetensors") <= 65536 * there.files < weights
    looked_at = traffic.nbytes
    plans = torch2mlx.plan(large).to_dict(), torch2mlx.plan(location).to_dict()
    assert plans[0]["strategies"] == plans[1]["strategies"]
    assert traffic.of("safetensors") <= 2 * 65536 * there.files
    assert traffic.nbytes - traffic.of("safetensors") < 2 * looked_at


def test_inspect_fetches_small_files_for_the_health_of_the_tokenizer(
    copied: Callable[..., Path], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied("llama")
    path = folder / "tokenizer.json"
    damaged = json.loads(path.read_text())
    damaged["added_tokens"].append({"id": 9999, "content": "<|far|>", "special": True})
    path.write_text(json.dumps(damaged))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nA model.\n")
    location, traffic = place(folder)
    found = torch2mlx.inspect(location)
    assert any("ids up to 9999" in hazard for hazard in found.hazards)
    assert found.licence == "apache-2.0"
    read = [(Path(name).name, count) for name, count in traffic.reads]
    assert read.count(("tokenizer.json", path.stat().st_size)) == 1

    limit = path.stat().st_size - 1
    monkeypatch.setattr("torch2mlx.inspection.words._FETCHED", limit)
    found = torch2mlx.inspect(location)
    assert not any("ids up to" in hazard for hazard in found.hazards)
    assert any("tokenizer.json is large" in note for note in found.notes)


def test_tensors_are_those_of_the_files(large: Path, place: Place) -> None:
    location, traffic = place(large)
    checkpoint = open_checkpoint(location)
    headers = traffic.of("safetensors")
    traffic.failures = 3  # connections that drop
    for path in large.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                stored = file.get_tensor(name).view(-1).view(dtype=_bits()).numpy()
                size = checkpoint.source.tensors[name].size
                assert checkpoint.source.read(name).tobytes() == stored.tobytes(), name
                middle = checkpoint.source.read_flat(name, size // 3, size // 2)
                assert middle.tobytes() == stored[size // 3 : size // 2].tobytes()
    checkpoint.source.close()
    assert traffic.failures == 0
    data = sum(info.nbytes for info in checkpoint.source.tensors.values())
    assert traffic.of("safetensors") - headers == data  # each byte once


def _bits() -> Any:
    import torch

    return torch.int16


def test_convert_keeps_no_copy_of_the_source(
    large: Path, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location, traffic = place(large)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    highest = 0

    def execute(*arguments: Any, check: Callable[[], None], **options: Any) -> None:
        def watch() -> None:
            nonlocal highest
            files = [p for p in tmp_path.rglob("*") if p.is_file() and not p.is_symlink()]
            highest = max(highest, sum(path.stat().st_size for path in files))
            check()

        plain(*arguments, check=watch, **options)

    plain = executor.execute_together
    monkeypatch.setattr(executor, "execute_together", execute)
    result = torch2mlx.convert(location, tmp_path / "there", max_shard_size="300KB")
    there, most = tmp_path / "there", highest
    torch2mlx.convert(large, tmp_path / "here", max_shard_size="300KB")
    for path in sorted((tmp_path / "here").iterdir()):
        if path.is_file() and path.name not in ("torch2mlx.json", "README.md"):
            assert path.read_bytes() == (there / path.name).read_bytes(), path.name
    output = sum(path.stat().st_size for path in there.rglob("*") if path.is_file())
    weights = sum(path.stat().st_size for path in large.glob("*.safetensors"))
    assert 0 < most <= output
    record = result.to_dict()["source"]
    assert record["location"] == location
    assert {p.name for p in large.glob("*.safetensors")} <= set(record["files"])
    # A model that fits the memory for segments is fetched once; headers and both ends beside it.
    assert traffic.of("safetensors") <= weights + 6 * 65536 * len(record["files"])


def test_a_stopped_run_goes_on(large: Path, place: Place, tmp_path: Path) -> None:
    location, _ = place(large)
    finished = 0

    class Stop(Silent):
        def stage(self, title: str, total: int | None = None) -> Any:
            plain = super().stage(title, total)
            if title != "Converting":
                return plain

            @contextmanager
            def stage() -> Any:
                def advance(count: int) -> None:
                    nonlocal finished
                    finished += count
                    if finished > 1_000_000:
                        raise KeyboardInterrupt

                yield advance

            return stage()

        def note(self, text: str) -> None:
            notes.append(text)

    notes: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        torch2mlx.convert(location, tmp_path / "out", max_shard_size="300KB", progress=Stop())
    finished = -(10**9)
    torch2mlx.convert(location, tmp_path / "out", max_shard_size="300KB", progress=Stop())
    assert any("going on" in note for note in notes)


def test_a_file_that_changes_is_noticed(
    large: Path, memory: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location, _ = memory(large)
    name = sorted(large.glob("*.safetensors"))[0]
    checkpoint = open_checkpoint(location)
    state = SourceState.take(checkpoint.source.files)
    MemoryFileSystem().pipe_file(f"/shelf/model/{name.name}", name.read_bytes())
    with pytest.raises(SourceError, match=r"memory://shelf/model/.* changed while"):
        state.check(thorough=True)


def test_broken_connections_end_in_one_message(large: Path, memory: Place) -> None:
    location, traffic = memory(large)
    checkpoint = open_checkpoint(location)
    traffic.failures = 10**6
    with pytest.raises(SourceError, match="after 4 attempts: connection reset") as caught:
        checkpoint.source.read("model.norm.weight")
    assert "secret" not in str(caught.value)
    traffic.failures = 0
    assert checkpoint.source.read("model.norm.weight").size == 128


def test_a_damaged_header_is_named_by_its_url(copied: Callable[..., Path], place: Place) -> None:
    folder = copied("llama")
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    location, _ = place(folder)
    with pytest.raises(SourceError, match=rf"^{location}/model.safetensors: truncated"):
        torch2mlx.inspect(location)


def test_names_never_lead_out_of_the_folder(large: Path, memory: Place, tmp_path: Path) -> None:
    location, _ = memory(large)
    index = large / "model.safetensors.index.json"
    evil = index.read_text().replace('"model-00001', '"../../model-00001')
    MemoryFileSystem().pipe_file(f"/shelf/model/{index.name}", evil.encode())
    with pytest.raises(SourceError, match="outside of the folder"):
        torch2mlx.inspect(location)


def test_an_index_of_files_that_are_not_there(copied: Callable[..., Path], place: Place) -> None:
    folder = copied("llama", shard_size="500KB")
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"model-00001', '"sub/model-00001'))
    next(folder.glob("model-00001*")).unlink()
    location, _ = place(folder)
    with pytest.raises(SourceError, match=r"sub/model-00001-of-.*"):
        torch2mlx.inspect(location)


def test_what_is_cached_is_used(large: Path, hub: Place, tmp_path: Path) -> None:
    location, traffic = hub(large)
    checkpoint = open_checkpoint(location, keep_download=True)
    total = sum(path.stat().st_size for path in large.glob("*.safetensors"))
    assert traffic.of("safetensors") == total
    first = checkpoint.source.files[0]
    assert first.is_symlink()
    torch2mlx.inspect(f"hf://{location}")
    assert traffic.of("safetensors") == total
    size = first.stat().st_size
    first.unlink()
    again = open_checkpoint(location)
    for name in again.source.tensors:
        again.source.read(name)
    assert traffic.of("safetensors") <= total + size + 65536


def test_missing_places(memory: Place, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory(large)
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as where it is not installed
    for url, words in {
        "memory://shelf/gone": "no such folder",
        "memory://u:secret@shelf/model/gone.safetensors?sig=secret": "no such f",
        "s3://bucket/x?key=secret": r"pip install 'torch2mlx\[s3\]'",
        "nosuch://u:secret@x/y": "does not know nosuch://",
    }.items():
        with pytest.raises(SourceError, match=words) as caught:
            open_checkpoint(url)
        assert "secret" not in str(caught.value)
    assert (
        "model.norm.weight"
        in open_checkpoint("memory://shelf/model/model.safetensors.index.json").source.tensors
    )
