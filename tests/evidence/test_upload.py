"""Uploads to a hub that only remembers: what is sent, what is said, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import torch2mlx
from torch2mlx.errors import OptionError, SourceError
from torch2mlx.evidence.certificate import CERTIFICATE

from .test_certificate import _flip, converted, folder  # noqa: F401  (fixtures)


class Hub:
    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, **options: Any) -> str:
        self.calls.append(("create", options))
        return "https://hub.example/me/llama-4bit"

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(("send", options))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    import huggingface_hub

    fake = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    return fake


def test_a_dry_run_lists_and_sends_nothing(
    folder: Path, hub: Hub, run_cli: Callable[..., Any]  # noqa: F811
) -> None:  # fmt: skip
    (folder / ".DS_Store").write_bytes(b"1")
    done = run_cli("upload", folder, "me/llama-4bit", "--private", "--dry-run", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != ".DS_Store"]
    expected = {p.relative_to(folder).as_posix(): p.stat().st_size for p in files}
    assert found["files"] == expected
    assert found["nbytes"] == sum(expected.values())
    assert (found["address"], found["private"]) == (None, True)
    warnings = "\n".join(found["warnings"])
    assert "README.md: no license" in warnings
    assert "names a place of this machine" in warnings
    assert hub.calls == []
    shown = run_cli("upload", folder, "me/llama-4bit", "--dry-run")
    assert "would be uploaded to me/llama-4bit" in " ".join(shown.out.split())


def test_a_proven_folder_is_sent_with_its_card(
    folder: Path, hub: Hub, run_cli: Callable[..., Any]  # noqa: F811
) -> None:  # fmt: skip
    card = folder / "README.md"
    card.write_text(card.read_text().replace("---\n", "---\nlicense: mit\n", 1))
    done = run_cli("upload", folder, "me/llama-4bit", "--private")
    assert done.code == 0, done.err
    assert "uploaded to https://hub.example/me/llama-4bit (private)" in " ".join(done.out.split())
    assert "license" not in done.out
    (_, created), (_, sent) = hub.calls
    assert created == {"repo_id": "me/llama-4bit", "exist_ok": True, "private": True}
    assert sent["folder_path"] == folder
    assert ".*" in sent["ignore_patterns"]


@pytest.mark.parametrize("certified", [True, False])
def test_other_files_than_the_proven_are_refused(
    folder: Path, hub: Hub, run_cli: Callable[..., Any], certified: bool  # noqa: F811
) -> None:  # fmt: skip
    if not certified:
        (folder / CERTIFICATE).unlink()
    _flip(folder / "model.safetensors", -3)
    done = run_cli("upload", folder, "me/llama-4bit")
    assert done.code == 3
    assert "not uploaded, it is not what was proven: model.safetensors: changed" in done.message
    assert hub.calls == []


def test_what_torch2mlx_did_not_make_is_refused(tmp_path: Path, hub: Hub) -> None:
    with pytest.raises(SourceError, match="not found"):
        torch2mlx.upload(tmp_path, "me/llama-4bit")
    with pytest.raises(OptionError, match="no repository of the hub"):
        torch2mlx.upload(tmp_path, "a/b/c")
    assert hub.calls == []
