"""Hub ids against a hub in a folder: what is asked for, in which order, and what goes wrong."""

from __future__ import annotations

import fnmatch
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file

from torch2mlx.errors import SourceError, UnsupportedError
from torch2mlx.sources import open_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves a folder as one repository and records what is downloaded."""

    root: ClassVar[Path]
    cache: ClassVar[Path]
    failure: ClassVar[Exception | None]
    asked: ClassVar[list[str]]

    def model_info(
        self, repo_id: str, *, revision: str | None = None, files_metadata: bool = False
    ) -> Any:
        if self.failure is not None:
            raise self.failure
        paths = sorted(path for path in self.root.rglob("*") if path.is_file())
        names = [path.relative_to(self.root).as_posix() for path in paths]
        siblings = [
            SimpleNamespace(rfilename=n, size=p.stat().st_size, lfs=None, blob_id=n)
            for n, p in zip(names, paths, strict=True)
        ]
        return SimpleNamespace(sha=COMMIT, siblings=siblings)

    def hf_hub_download(
        self, repo_id: str, filename: str, *, revision: str, local_files_only: bool = False
    ) -> str:
        assert revision == COMMIT
        if local_files_only:
            if not (self.cache / filename).exists():
                raise errors.LocalEntryNotFoundError("not cached")
            return str(self.cache / filename)
        self.asked.append(filename)
        target = self.cache / filename
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.root / filename, target)
        return str(target)

    def snapshot_download(
        self,
        repo_id: str,
        *,
        revision: str | None = None,
        allow_patterns: list[str] | None = None,
        local_files_only: bool = False,
    ) -> str:
        if local_files_only:
            if not self.cache.exists():
                raise errors.LocalEntryNotFoundError("nothing cached")
            return str(self.cache)
        assert revision == COMMIT
        for path in sorted(self.root.rglob("*")):
            name = path.relative_to(self.root).as_posix()
            if path.is_file() and any(fnmatch.fnmatch(name, p) for p in allow_patterns or []):
                self.hf_hub_download(repo_id, name, revision=revision)
        return str(self.cache)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[FakeHub]:
    monkeypatch.chdir(tmp_path)
    FakeHub.root, FakeHub.cache = tmp_path / "hub", tmp_path / "cache"
    FakeHub.failure, FakeHub.asked = None, []
    FakeHub.root.mkdir()
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    return FakeHub


def publish(hub: type[FakeHub], **files: str) -> None:
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for number, name in enumerate(shards):
        save_file({f"w{number}": torch.ones(2)}, hub.root / name)
    index = {"weight_map": {f"w{number}": name for number, name in enumerate(shards)}}
    (hub.root / "model.safetensors.index.json").write_text(json.dumps(index))
    (hub.root / "config.json").write_text('{"model_type": "llama"}')
    for name in (
        "tokenizer.json pytorch_model-00001-of-00001.bin pytorch_model.bin.index.json "
        "consolidated.safetensors tf_model.h5 onnx/model.onnx original/params.json README.md "
        "LICENSE chat_template.jinja modeling_x.py training_args.bin"
    ).split():
        (hub.root / name).parent.mkdir(exist_ok=True)
        (hub.root / name).write_text("{}")


def test_only_what_is_needed_config_first(hub: type[FakeHub]) -> None:
    publish(hub)
    seen: list[tuple[str, list[str]]] = []
    checkpoint = open_checkpoint(
        "owner/name",
        revision="v1",
        keep_download=True,
        accept_config=lambda config: seen.append((config["model_type"], list(hub.asked))),
    )
    assert seen == [("llama", ["config.json"])]
    assert set(checkpoint.state) == {"w0", "w1"}
    assert checkpoint.location == "owner/name"
    assert set(hub.asked) == {
        "config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
        "LICENSE",
    }
    open_checkpoint("owner/name", trust_remote_code=True, keep_download=True)
    assert "modeling_x.py" in hub.asked


def test_refused_config_costs_nothing(hub: type[FakeHub]) -> None:
    publish(hub)

    def refuse(config: dict[str, Any]) -> None:
        raise UnsupportedError("no such architecture")

    with pytest.raises(UnsupportedError, match="no such architecture"):
        open_checkpoint("owner/name", accept_config=refuse)
    assert hub.asked == ["config.json"]
    (hub.root / "config.json").unlink()
    hub.asked.clear()
    with pytest.raises(SourceError, match=r"has no config\.json"):
        open_checkpoint("owner/name")
    assert not [name for name in hub.asked if name.endswith(".safetensors")]


def test_one_file_of_a_repository(hub: type[FakeHub]) -> None:
    publish(hub)
    save_file({"v": torch.ones(2)}, hub.root / "variant.safetensors")
    checkpoint = open_checkpoint("owner/name/variant.safetensors", keep_download=True)
    assert set(checkpoint.state) == {"v"}
    assert "model-00001-of-00002.safetensors" not in hub.asked
    with pytest.raises(SourceError, match=r"has no file gone\.gguf"):
        open_checkpoint("owner/name/gone.gguf")


def http_error(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)
    error.args = ("404",)
    return error


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (http_error(errors.GatedRepoError), "access is gated.*hf auth login"),
        (http_error(errors.RepositoryNotFoundError), "no such file or folder here, and no such"),
        (http_error(errors.RevisionNotFoundError), "has no revision 'v9'"),
        (errors.HFValidationError("bad"), "not a hub id"),
        (errors.OfflineModeIsEnabled("offline mode"), "cannot be reached .offline mode.*cache"),
        (ConnectionError("no route"), "cannot be reached .no route.*local folder"),
    ],
)
def test_one_message(hub: type[FakeHub], failure: Exception, words: str) -> None:
    hub.failure = failure
    with pytest.raises(SourceError, match=words):
        open_checkpoint("owner/name", revision="v9")


def test_cache_is_used_without_a_network(hub: type[FakeHub]) -> None:
    publish(hub)
    open_checkpoint("owner/name", keep_download=True)
    hub.failure = ConnectionError("no route")
    assert set(open_checkpoint("owner/name").state) == {"w0", "w1"}


def test_a_bug_is_not_mistaken_for_the_network(hub: type[FakeHub]) -> None:
    hub.failure = TypeError("a bug")
    with pytest.raises(TypeError, match="a bug"):
        open_checkpoint("owner/name")


@pytest.mark.parametrize("location", ["./owner/name", "/owner/name", "a/b/c", "a b", "x.gguf"])
def test_paths_are_not_taken_for_ids(hub: type[FakeHub], location: str) -> None:
    with pytest.raises(SourceError, match="no such file or folder, and not a hub id"):
        open_checkpoint(location)


def test_the_real_client_takes_our_calls() -> None:
    """The fake's signatures are the library's."""
    import inspect

    for name in ("model_info", "hf_hub_download", "snapshot_download"):
        real = inspect.signature(getattr(huggingface_hub.hf_api.HfApi, name)).parameters
        assert set(inspect.signature(getattr(FakeHub, name)).parameters) <= set(real)
