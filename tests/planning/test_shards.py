from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest

from torch2mlx.dtypes import DTYPES
from torch2mlx.errors import OptionError
from torch2mlx.planning.shards import TensorSpec, parse_size, plan_shards


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4 * 10**9), ("500MB", 5 * 10**8), ("1GiB", 2**30), ("1.5 kb", 1500), (17, 17)],
)
def test_sizes_are_decimal_unless_they_say_otherwise(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "4 giga", "1i", "1e9"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(OptionError, match="size"):
        parse_size(text)


def specs(*sizes):
    return [[TensorSpec(f"layer.{i}.weight", DTYPES["F32"], (n,))] for i, n in enumerate(sizes)]


@pytest.mark.parametrize("limit", [700, 1000, 1500, 4000, 100_000])
def test_no_file_exceeds_the_limit_and_every_byte_is_planned(limit, tmp_path):
    groups = specs(100, 30, 1, 90, 77, 64, 3, 100)
    shards = plan_shards(groups, limit)
    names = [name for shard in shards for name in shard.offsets]
    assert sorted(names) == sorted(s.name for (s,) in groups)
    for shard in shards:
        assert shard.nbytes <= limit
        path = tmp_path / shard.file
        path.write_bytes(shard.header + bytes(shard.nbytes - len(shard.header)))
        loaded = mx.load(str(path))
        assert set(loaded) == set(shard.offsets)


def test_files_are_filled_as_far_as_the_limit_allows():
    groups = specs(100, 100, 100, 100)
    assert len(plan_shards(groups, 10_000)) == 1
    assert len(plan_shards(groups, 1_200)) == 2
    assert [s.file for s in plan_shards(groups, 1_200)] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_a_tensor_larger_than_the_limit_is_refused_with_a_limit_that_works():
    with pytest.raises(OptionError, match=r"layer.1.weight alone needs") as caught:
        plan_shards(specs(10, 1000), 2000)
    enough = int(str(caught.value).split("--max-shard-size ")[1].split()[0])
    assert len(plan_shards(specs(10, 1000), enough)) == 2


def test_data_are_aligned_whatever_the_order_of_dtypes():
    group = [
        TensorSpec("codes", DTYPES["U8"], (3,)),
        TensorSpec("half", DTYPES["BF16"], (5,)),
        TensorSpec("wide", DTYPES["F32"], (7,)),
    ]
    (shard,) = plan_shards([group], 10**6)
    for spec in group:
        assert shard.offsets[spec.name] % spec.dtype.itemsize == 0
    header = json.loads(shard.header[8:])
    spans = sorted(v["data_offsets"] for k, v in header.items() if k != "__metadata__")
    assert spans[0][0] == 0
    assert all(a[1] == b[0] for a, b in zip(spans, spans[1:], strict=False))


def test_names_beyond_ascii_keep_the_bound_exact():
    group = [[TensorSpec("schicht.größe." + "ü" * 50, DTYPES["F32"], (8,))]]
    (shard,) = plan_shards(group, 400)
    assert shard.nbytes <= 400
    assert np.frombuffer(shard.header[:8], "<u8")[0] == len(shard.header) - 8
