from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import torch2mlx
from torch2mlx.architectures.bounds import check_counts, check_sizes
from torch2mlx.architectures.port import load_port, plain_port
from torch2mlx.dtypes import parse_dtype
from torch2mlx.errors import PlanError, UnsupportedError
from torch2mlx.planning.expressions import Source

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96, "rms_norm_eps": 1e-5,
}  # fmt: skip


@contextmanager
def _soon() -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 20_000),
        ("num_hidden_layers", 1e12),
        ("vocab_size", 10**12),
        ("hidden_size", 10**15),
        ("intermediate_size", 2**31),
        ("num_attention_heads", 10**12),
        ("num_experts", 10**7),
        ("n_routed_experts", 10**7),
        ("num_local_experts", 10**7),
    ],
)
@pytest.mark.parametrize("load", [load_port, plain_port])
def test_sizes_that_no_model_has_are_refused(
    load: Callable[[dict[str, Any]], Any], key: str, value: float
) -> None:
    with _soon(), pytest.raises(UnsupportedError, match=f"{key} is .*at most"):
        load({**LLAMA, key: value})


def test_nested_sizes_are_refused_by_their_path() -> None:
    with pytest.raises(UnsupportedError, match=r"text_config\.num_hidden_layers"):
        load_port({"model_type": "gemma3", "text_config": {"num_hidden_layers": 10**9}})


def test_lengths_and_real_sizes_are_accepted() -> None:
    large = {
        "num_hidden_layers": 126, "hidden_size": 16384, "vocab_size": 262_144,
        "n_routed_experts": 512, "max_position_embeddings": 10**10, "sliding_window": 10**10,
        "rope_theta": 1e12, "head_dim": float("inf"), "bos_token_id": 10**10,
    }  # fmt: skip
    check_sizes({**LLAMA, **large})


def _state(count: int, *shape: int) -> dict[str, Any]:
    names = [f"model.layers.{i}.weight" for i in range(count)]
    return {name: Source(name, parse_dtype("float32"), shape or (4, 4)) for name in names}


def test_far_more_layers_than_tensors_are_refused() -> None:
    with pytest.raises(PlanError, match=r"num_hidden_layers is 5,000.*20 tensors"):
        check_counts({"num_hidden_layers": 5000}, _state(20))
    check_counts({"num_hidden_layers": 20}, _state(2))  # the mapping says what is missing


def test_experts_may_be_stacked_in_one_tensor() -> None:
    with pytest.raises(PlanError, match="num_experts is 2,048"):
        check_counts({"num_experts": 2048}, _state(20))
    check_counts({"num_experts": 2048}, _state(20, 2048, 4, 4))


@pytest.mark.parametrize("layers", [9_999, 10**9])
def test_a_conversion_ends_soon(copied: Callable[..., Path], tmp_path: Path, layers: int) -> None:
    source = copied("llama")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
    match = f"num_hidden_layers is {layers:,}"
    with _soon(), pytest.raises((PlanError, UnsupportedError), match=match):
        torch2mlx.convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
