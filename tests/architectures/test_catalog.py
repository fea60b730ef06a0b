"""What is told of mlx-lm's ports without importing them, against the classes themselves."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from torch2mlx.architectures.catalog import runs_sharded, sharded_ports

GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        ("llama", True), ("qwen3_5_moe", True), ("solar_open", True), ("glm_moe_dsa", True),
        ("prism_hadamard_qwen35", True), ("gemma3", False), ("qwen3_next", False),
        ("kimi_vl", False), ("no_such_port", False),
    ],
)  # fmt: skip
def test_shard_is_found_where_the_class_has_it(port: str, expected: bool) -> None:
    assert runs_sharded(port) is expected
    if port != "no_such_port":
        model = importlib.import_module(f"mlx_lm.models.{port}").Model
        assert hasattr(model, "shard") is expected


def test_the_guide_lists_them() -> None:
    text = GUIDE.read_text(encoding="utf-8").partition("## On several Macs")[2]
    listed = re.findall(r"`(\w[\w.\-]*)`[,.]", text.partition("have it:")[2].partition("##")[0])
    assert tuple(listed) == sharded_ports()
