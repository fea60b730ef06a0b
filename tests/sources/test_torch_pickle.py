"""Pickles that are more than a state dict: refused without running, importing or filling memory."""

from __future__ import annotations

import builtins
import collections
import pickle
import resource
import struct
from pathlib import Path
from typing import Any

import pytest

from torch2mlx.errors import SourceError
from torch2mlx.sources.torch_pickle import read_pickle

FILE = Path("weights.bin")


class _Opens:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (builtins.open, (str(self.path), "w"))


def test_a_payload_does_not_run(tmp_path: Path) -> None:
    data = pickle.dumps({"w": _Opens(tmp_path / "canary")}, protocol=2)
    with pytest.raises(SourceError, match=r"names \w+\.open, .* nothing was run"):
        read_pickle(FILE, data)
    assert not (tmp_path / "canary").exists()


def test_build_cannot_change_classes_or_functions_of_this_process() -> None:
    """`pickle` itself would set Counter.__init__ here, for the whole program."""
    data = b"\x80\x02ccollections\nCounter\n(N}X\x08\x00\x00\x00__init__ctorch\ndevice\nstb."
    before = collections.Counter.__init__
    read_pickle(FILE, data)
    assert collections.Counter.__init__ is before
    assert collections.Counter("aab")["a"] == 2


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x80\x02" + b"}" * 3_100_000 + b".", "more than 3,000,000 instructions"),
        (b"\x80\x02}r\xff\xff\xff\xff.", None),  # a memo of 4 billion entries for `pickle`
        (b"\x80\x02})\x85" + b"\x85" * 200_000 + b"Ns.", "tuple as key"),  # hashed without end
        (b"\x80\x02X" + struct.pack("<I", 2**31 - 1) + b"a.", "damaged"),
        (b"\x80\x02\x8b\x00\x00\x00\x7f.", "damaged|does not write"),
        (b"\x80\x02N)R.", "calls something"),
        (b"\x80\x02Na.", "no list|damaged"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))\x89}tR.", "does not write"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", r"names os\.system"),
        (b"\x80\x02\x82\x01.", "does not write: EXT1"),
        (b"\x80\x02}", "damaged|no end"),
        (b"", "damaged|no end"),
    ],
    ids=lambda value: value[:12].hex() if isinstance(value, bytes) else "",
)
def test_bombs_and_nonsense(data: bytes, words: str | None) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if words is None:
        assert read_pickle(FILE, data) == {}
    else:
        with pytest.raises(SourceError, match=words):
            read_pickle(FILE, data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


def test_plain_containers_are_what_python_makes_of_them() -> None:
    value = {
        "epoch": 3,
        "ids": [1, 2, (3, 4.5, None)],
        "flags": {"a": True, "b": False},
        "text": "é\u2028",
        "raw": b"\x00\xff",
        "ordered": collections.OrderedDict(a=1),
        "long": 2**70,
    }
    for protocol in (2, 3, 4, 5):
        assert read_pickle(FILE, pickle.dumps(value, protocol=protocol)) == value
