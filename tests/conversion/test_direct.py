"""Writes past the page cache give the file that ordinary writes give."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from torch2mlx.conversion import direct
from torch2mlx.conversion.direct import DirectWriter


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "_CHUNK", 4096)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    path = tmp_path / "file"
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    yield path, handle
    os.close(handle)


def pieces(content: bytes, rng: random.Random) -> list[tuple[int, bytes]]:
    cuts = sorted({0, len(content), *(rng.randrange(len(content)) for _ in range(120))})
    return [(a, content[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]


def write(opened: tuple[Path, int], parts: list[tuple[int, bytes]], threads: int = 4) -> bytes:
    path, handle = opened
    writer = DirectWriter(path, handle)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: writer.write(memoryview(part[1]), part[0]), parts))
    writer.flush()
    writer.close()
    return path.read_bytes()


@pytest.mark.parametrize("shuffled", [False, True])
def test_any_order_and_any_cut_give_the_same_file(opened: tuple[Path, int], shuffled: bool) -> None:
    rng = random.Random(3)
    content = rng.randbytes(40 * 4096 + 123)
    parts = pieces(content, rng)
    if shuffled:  # more chunks wait than there is room for
        rng.shuffle(parts)
    assert write(opened, parts) == content


def test_full_chunks_go_past_the_page_cache(
    opened: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, handle = opened
    probe = DirectWriter(path, handle)
    if probe._direct < 0:
        pytest.skip("this file system has no direct writes")
    probe.close()
    real, ordinary = os.pwrite, []

    def pwrite(where: int, data: bytes, offset: int) -> int:
        if where == handle:
            ordinary.append(len(data))
        return real(where, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    content = random.Random(4).randbytes(20 * 4096 + 99)
    assert write(opened, [(0, content[:5000]), (5000, content[5000:])], threads=1) == content
    assert sum(ordinary) == 99  # the end alone, which fills no chunk


@pytest.mark.parametrize("refusal", ["open", "write", "short"])
def test_what_the_file_system_refuses_is_written_as_ever(
    opened: tuple[Path, int], monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    handle = opened[1]
    real_open, real_write = os.open, os.pwrite

    def open_(name: Path, flags: int, *rest: int) -> int:
        if refusal == "open" and flags & direct._O_DIRECT:
            raise OSError(errno.EINVAL, "no direct writes")
        return real_open(name, flags, *rest)

    def pwrite(where: int, data: bytes, offset: int) -> int:
        if refusal == "write" and where != handle:
            raise OSError(errno.EINVAL, "other alignment")
        if refusal == "short" and where != handle:
            return real_write(handle, memoryview(data)[:700], offset)
        return real_write(where, data, offset)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "pwrite", pwrite)
    rng = random.Random(5)
    content = rng.randbytes(9 * 4096 + 1)
    assert write(opened, pieces(content, rng)) == content


def test_a_full_disk_is_told(opened: tuple[Path, int], monkeypatch: pytest.MonkeyPatch) -> None:
    path, handle = opened

    def pwrite(where: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", pwrite)
    writer = DirectWriter(path, handle)
    with pytest.raises(OSError, match="full"):
        writer.write(memoryview(bytes(4096)), 0)
    writer.close()
