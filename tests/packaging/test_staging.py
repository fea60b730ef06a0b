from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from torch2mlx.errors import DestinationError, NumericError
from torch2mlx.packaging.staging import Staging, check_destination, disk_errors_told


def _write(staging: Staging) -> None:
    (staging.folder / "model.safetensors").write_bytes(b"weights")
    (staging.folder / "sub").mkdir()
    (staging.folder / "sub" / "a.jinja").write_text("x")


def _stage(destination: Path, action: Callable[[Staging], object]) -> None:
    with Staging(destination) as staging:
        _write(staging)
        action(staging)


def test_publish_gives_the_folder_its_name(tmp_path: Path) -> None:
    with Staging(tmp_path / "out") as staging:
        assert staging.work.parent == tmp_path
        assert staging.work.name.startswith(".out.torch2mlx-")
        assert staging.folder.parent == staging.work
        _write(staging)
        assert not (tmp_path / "out").exists()
        assert staging.publish() == tmp_path / "out"
    assert sorted(os.listdir(tmp_path)) == ["out"]
    assert (tmp_path / "out" / "sub" / "a.jinja").read_text() == "x"


def test_every_file_and_folder_is_synced_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    opened: dict[int, str] = {}
    real_open, real_rename = os.open, os.rename

    def spy_open(path: str, flags: int, *rest: int) -> int:
        descriptor = real_open(path, flags, *rest)
        opened[descriptor] = Path(path).name
        return descriptor

    with Staging(tmp_path / "out") as staging:
        _write(staging)
        monkeypatch.setattr(os, "open", spy_open)
        monkeypatch.setattr(os, "fsync", lambda d: events.append(opened[d]))
        monkeypatch.setattr(os, "rename", lambda a, b: (events.append("RENAME"), real_rename(a, b)))
        staging.publish()
        monkeypatch.undo()
    assert events == ["model.safetensors", "a.jinja", "sub", "output", "RENAME", tmp_path.name]


@pytest.mark.parametrize("kind", ["file", "empty", "full", "link", "dangling"])
def test_an_existing_destination_is_refused_and_untouched(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind in ("empty", "full"):
        out.mkdir()
        if kind == "full":
            (out / "config.json").write_text("{}")
    else:
        target = tmp_path / "target"
        if kind == "link":
            target.mkdir()
        out.symlink_to(target)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(DestinationError, match="exists already") as caught:
        Staging(out)
    assert ("rmdir" in str(caught.value)) == (kind == "empty")
    assert sorted(os.listdir(tmp_path)) == before


def test_a_destination_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with Staging(tmp_path / "out") as staging:
        _write(staging)
        (tmp_path / "out").mkdir()
        with pytest.raises(DestinationError, match="exists already"):
            staging.publish()
    assert not staging.folder.exists()
    assert sorted(os.listdir(tmp_path)) == ["out"]
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize(
    "error", [NumericError("NaN in x"), KeyboardInterrupt(), OSError(2, "none")]
)
def test_nothing_is_left_after_a_failure(tmp_path: Path, error: BaseException) -> None:
    def fail(staging: Staging) -> None:
        raise error

    with pytest.raises(type(error)):
        _stage(tmp_path / "a" / "b" / "out", fail)
    assert os.listdir(tmp_path) == []


def test_nothing_is_left_without_publish(tmp_path: Path) -> None:
    with Staging(tmp_path / "new" / "out") as staging:
        _write(staging)
    assert os.listdir(tmp_path) == []


def test_created_parents_stay_when_somebody_uses_them(tmp_path: Path) -> None:
    _stage(
        tmp_path / "a" / "b" / "out", lambda s: (tmp_path / "a" / "other.txt").write_text("theirs")
    )
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "other.txt"]


def test_failure_of_the_sync_removes_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DestinationError, match="disk became full"):
        _stage(tmp_path / "out", Staging.publish)
    assert os.listdir(tmp_path) == []


def test_interrupt_during_publish_removes_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        _stage(tmp_path / "out", Staging.publish)
    assert os.listdir(tmp_path) == []


def test_interrupt_after_the_rename_keeps_the_result(tmp_path: Path) -> None:
    def late(staging: Staging) -> None:
        staging.publish()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _stage(tmp_path / "out", late)
    assert sorted(os.listdir(tmp_path)) == ["out"]


def test_too_little_room_is_found_before_the_first_byte(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with (
        pytest.raises(DestinationError, match=r"needs .* TB, the disk has .* free"),
        Staging(tmp_path / "deep" / "out") as staging,
    ):
        staging.require_room(free + 10**15)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_disk_that_fills_up_is_a_destination_error(tmp_path: Path, wrapped: bool) -> None:
    def fill(staging: Staging) -> None:
        shard = staging.folder / "model-00002-of-00002.safetensors"
        shard.symlink_to("/dev/full")
        try:
            shard.write_bytes(b"x" * 100_000)
        except OSError as error:
            if wrapped:
                raise RuntimeError("writer failed") from error
            raise

    with pytest.raises(DestinationError, match="became full"):
        _stage(tmp_path / "out", fill)
    assert os.listdir(tmp_path) == []


def test_unwritable_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DestinationError, match="cannot be written: Permission denied"):
        Staging(tmp_path / "out").__enter__()


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DestinationError, match="is a file, not a folder"):
        Staging(tmp_path / "file" / "out")


def test_relative_destination_survives_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with Staging("models/out/") as staging:
        _write(staging)
        monkeypatch.chdir(tmp_path / "elsewhere")
        staging.publish()
    assert (tmp_path / "models" / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("name", [".", "..", "/", "", "x/.."])
def test_names_of_existing_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DestinationError):
        check_destination(name)


def test_parent_behind_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "models").symlink_to(tmp_path / "disk")
    with Staging(tmp_path / "models" / "out") as staging:
        _write(staging)
        assert staging.work.parent == tmp_path / "disk"
        staging.publish()
    assert (tmp_path / "models" / "out" / "model.safetensors").exists()


def test_a_name_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    name = "ü" * 127
    with Staging(tmp_path / name) as staging:
        _write(staging)
        staging.publish()
    assert os.listdir(tmp_path) == [name]


_KILLED = """
import sys, time
from torch2mlx.packaging.staging import Staging
with Staging(sys.argv[1]) as staging:
    (staging.folder / "model.safetensors").write_bytes(b"x")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_run_left_is_removed_but_not_what_a_living_one_uses(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(out)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        bystander = tmp_path / ".other.torch2mlx-0123456789ab"
        bystander.mkdir()
        with pytest.raises(DestinationError, match=f"process {process.pid} on"):
            Staging(out).__enter__()
        assert len(list(tmp_path.iterdir())) == 2
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    time.sleep(0.05)
    with Staging(out) as staging:
        assert not list(staging.folder.iterdir())
        assert {p.name for p in tmp_path.iterdir()} == {staging.work.name, bystander.name}


def test_many_runs_at_once_publish_exactly_one(tmp_path: Path) -> None:
    """They wait for each other, and none removes the folder of another."""
    results: list[str] = []

    def run(number: int) -> None:
        try:
            with Staging(tmp_path / "new" / "out", wait=True) as staging:
                (staging.folder / "config.json").write_text(str(number))
                staging.publish()
            results.append("published")
        except DestinationError as error:
            results.append("exists" if "exists already" in str(error) else str(error))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["exists"] * 15 + ["published"]
    assert os.listdir(tmp_path / "new") == ["out"]


def test_a_failing_disk_is_told_where_no_output_is_begun(tmp_path: Path) -> None:
    """As while a model is calibrated, before its output has a folder."""
    with (
        pytest.raises(DestinationError, match=r"out cannot be written at .*stream.npy.*goes on"),
        disk_errors_told(tmp_path / "out"),
    ):
        raise OSError(errno.EIO, "Input/output error", str(tmp_path / "stream.npy"))
    with (
        pytest.raises(DestinationError, match="became full"),
        disk_errors_told(tmp_path / "out"),
    ):
        raise RuntimeError("cannot save") from OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError), disk_errors_told(tmp_path / "out"):
        raise FileNotFoundError(errno.ENOENT, "gone")
