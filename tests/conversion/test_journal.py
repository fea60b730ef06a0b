"""What a journal promises after any end of the process that wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from torch2mlx.conversion import journal as module
from torch2mlx.conversion.journal import Journal, read_finished
from torch2mlx.conversion.records import record_file
from torch2mlx.errors import DestinationError

IDENTITY: dict[str, Any] = {
    "source": {"a.safetensors": {"size": 3}},
    "options": {"q_bits": 4},
    "versions": {"mlx": "1.0"},
    "plan": "abc",
}


def _filled(folder: Path, *names: str) -> None:
    journal = Journal(folder, IDENTITY)
    for name in names:
        (folder / name).write_bytes(name.encode() * 100)
        journal.finish(folder / name)
    journal.close()


def test_finished_files_are_known_to_the_next_run(tmp_path: Path) -> None:
    _filled(tmp_path, "a", "b")
    found = Journal(tmp_path, IDENTITY)
    assert dict(found.finished) == {n: record_file(tmp_path / n) for n in ("a", "b")}
    assert found.knows(tmp_path / "a")
    assert not found.knows(tmp_path / "c")


@pytest.mark.parametrize("damage", ["gone", "shorter", "flipped", "link"])
def test_a_file_that_is_no_longer_whole_is_not_finished(tmp_path: Path, damage: str) -> None:
    _filled(tmp_path, "a", "b")
    path = tmp_path / "a"
    data = bytearray(path.read_bytes())
    path.unlink()
    if damage == "shorter":
        path.write_bytes(data[:-1])
    elif damage == "flipped":
        data[50] ^= 1
        path.write_bytes(data)
    elif damage == "link":
        (tmp_path / "elsewhere").write_bytes(data)
        path.symlink_to(tmp_path / "elsewhere")
    assert list(Journal(tmp_path, IDENTITY).finished) == ["b"]


def test_any_cut_of_the_journal_leaves_whole_lines(tmp_path: Path) -> None:
    """Also when the next run writes on after the cut."""
    _filled(tmp_path, "a", "b")
    whole = (tmp_path / "journal").read_bytes()
    for cut in range(0, len(whole), 31):
        (tmp_path / "journal").write_bytes(whole[:cut])
        expected = [n for n in ("a", "b") if f'"{n}"'.encode() in whole[:cut].rpartition(b"\n")[0]]
        journal = Journal(tmp_path, IDENTITY)
        assert list(journal.finished) == expected
        (tmp_path / "c").write_bytes(b"c")
        journal.finish(tmp_path / "c")
        journal.close()
        assert list(Journal(tmp_path, IDENTITY).finished) == [*expected, "c"]


@pytest.mark.parametrize(
    "line",
    [
        '{"file": "../outside", "size": 3, "sha256": "' + "0" * 64 + '"}',
        '{"file": "/etc/passwd", "size": 3, "sha256": "' + "0" * 64 + '"}',
        '{"file": "c", "size": -1, "sha256": "' + "0" * 64 + '"}',
        '{"file": "c", "size": 1, "sha256": "short"}',
        '{"file": ["c"], "size": 1}',
        "[" * 100_000,
        "\x00" * 50,
    ],
)
def test_damaged_lines_are_not_believed(tmp_path: Path, line: str) -> None:
    _filled(tmp_path, "a")
    with (tmp_path / "journal").open("a") as file:
        file.write(line + "\n")
    assert list(read_finished(tmp_path)) == ["a"]


def test_file_and_folder_are_on_the_disk_before_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, IDENTITY)
    (tmp_path / "a").write_bytes(b"x")
    events: list[str] = []
    monkeypatch.setattr(module, "sync", lambda path: events.append(path.name))
    append = module._append
    monkeypatch.setattr(module, "_append", lambda *a: (events.append("LINE"), append(*a)))
    journal.finish(tmp_path / "a")
    assert events == ["a", tmp_path.name, "LINE"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"options": {"q_bits": 8}, "plan": "x"}, "option q_bits: 4, now 8"),
        ({"options": {}, "plan": "x"}, "option q_bits: 4, now not given"),
        ({"versions": {"mlx": "2.0"}}, "mlx: 1.0, now 2.0"),
        ({"source": {"a.safetensors": {"size": 4}}}, "source file a.safetensors changed"),
        ({"source": {}}, "source file a.safetensors is gone"),
        ({"plan": "x"}, "the plan is another one"),
    ],
)
def test_what_changed_is_said(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    _filled(tmp_path, "a")
    with pytest.raises(DestinationError, match="--restart") as caught:
        Journal(tmp_path, {**IDENTITY, **change})
    assert words in str(caught.value)
    assert list(read_finished(tmp_path)) == ["a"], "nothing was touched"
    assert not Journal(tmp_path, {**IDENTITY, **change}, restart=True).finished


def test_another_spelling_of_the_same_options_goes_on(tmp_path: Path) -> None:
    _filled(tmp_path, "a")
    assert Journal(tmp_path, {**IDENTITY, "options": {}}).knows(tmp_path / "a")


def test_journals_of_several_processes_count(tmp_path: Path) -> None:
    _filled(tmp_path, "a")
    other = Journal(tmp_path, IDENTITY, rank=3)
    (tmp_path / "b").write_bytes(b"b")
    other.finish(tmp_path / "b")
    other.close()
    lines = (tmp_path / "journal-3").read_text().splitlines()
    assert [json.loads(x).get("file") for x in lines] == [None, "b"]
    assert sorted(Journal(tmp_path, IDENTITY).finished) == ["a", "b"]
