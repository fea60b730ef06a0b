"""Where files are cut, and that nothing is fetched twice."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

from torch2mlx.sources.remote import ahead
from torch2mlx.sources.remote.ahead import ReadAhead, cut
from torch2mlx.sources.remote.files import RemoteFile


def test_cut() -> None:
    spans = [(10, 12), (12, 15), (15, 40), (40, 41), (41, 50), (50, 53)]
    assert cut(spans, 10) == [
        (10, 15, 15), (15, 25, 40), (25, 35, 40), (35, 40, 40), (40, 50, 50), (50, 53, 53),
    ]  # fmt: skip
    assert cut([], 10) == []
    assert cut([(0, 10)], 10) == [(0, 10, 10)]


def test_many_readers_fetch_once() -> None:
    data = bytes(range(256)) * (1 << 17)  # 32 MB
    asked: Counter[int] = Counter()

    def cat_file(path: str, start: int, end: int) -> bytes:
        asked[start] += 1
        return data[start:end]

    remote = RemoteFile(SimpleNamespace(cat_file=cat_file), "x", "m://x", len(data), "")
    reads = ReadAhead()
    third = len(data) // 3
    reads.learn(remote, [(0, 100), (100, third), (third, len(data))])

    def read(start: int) -> None:
        block = bytearray(min(1 << 20, len(data) - start))
        reads.read_into(memoryview(block), remote, start)
        assert block == data[start : start + len(block)]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(0, len(data), 1 << 20)))
    assert set(asked.values()) == {1}
    assert len(asked) == len(cut([(0, 100), (100, third), (third, len(data))]))
    for start in range(0, len(data), ahead.SEGMENT):  # again from the start: memory is bounded
        read(start)
    reads.close()
