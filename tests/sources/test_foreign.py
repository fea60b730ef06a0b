"""Settings from elsewhere: wrong kinds, patterns without end, and files that are none."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import torch2mlx
from torch2mlx.compiler.route import is_program
from torch2mlx.errors import SourceError
from torch2mlx.sources.foreign import foreign_values, matches
from torch2mlx.sources.local_files import read_json_object


def test_wrong_kinds_are_told_in_words() -> None:
    with (
        pytest.raises(SourceError, match=r"x\.json: holds a value of a kind"),
        foreign_values("x.json", "save it again"),
    ):
        {}["bits"]
    with pytest.raises(SourceError, match="save it again"), foreign_values("x", "save it again"):
        assert [1] // 2  # type: ignore[operator]
    with pytest.raises(KeyboardInterrupt), foreign_values("x", ""):
        raise KeyboardInterrupt


def test_patterns_end() -> None:
    assert matches(r"(.*\.)?q_proj$", "layers.0.q_proj", "x")
    assert not matches(r"layers\.\d+$", "layers.0.q_proj", "x")
    start = time.process_time()
    with pytest.raises(SourceError, match=r"adapter.json: .* takes too long"):
        matches(r"(a|aa|aaa)+$", "a" * 80 + "!", "adapter.json")
    assert time.process_time() - start < 5
    with pytest.raises(SourceError, match="is none"):
        matches("(", "x", "x")


def test_devices_and_pipes_are_not_read(copied: Callable[..., Path], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    for path in (Path("/dev/zero"), tmp_path / "pipe.json"):
        with pytest.raises(SourceError, match="no regular file"):
            read_json_object(path)
        assert not is_program(path)
    folder = copied("llama")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        path = folder / name
        kept = path.read_bytes()
        path.unlink()
        path.symlink_to("/dev/zero")
        if name == "tokenizer_config.json":  # is not among the files to copy
            torch2mlx.inspect(folder)
        else:
            with pytest.raises(SourceError, match="no regular file"):
                torch2mlx.inspect(folder)
        path.unlink()
        path.write_bytes(kept)


def test_a_config_of_other_kinds_is_no_program(tmp_path: Path) -> None:
    for text in ("[" * 100_000, json.dumps({"architectures": 5})):
        (tmp_path / "config.json").write_text(text)
        assert not is_program(tmp_path)


def test_names_that_no_file_can_have() -> None:
    for name in ("x" * 5000, "x/\0", "a/" * 3000):
        with pytest.raises(SourceError, match="no such"):
            torch2mlx.inspect(name)


def test_documents_behind_links_stay_where_they_are(
    copied: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copied("llama")
    (tmp_path / "secret").write_text("private")
    (folder / "README.md").symlink_to(tmp_path / "secret")
    (folder / "LICENSE").write_text("terms")
    torch2mlx.convert(folder, tmp_path / "out", verify=False)
    assert (tmp_path / "out" / "LICENSE").read_text() == "terms"
    assert not (tmp_path / "out" / "README.source.md").exists()
