"""Planned sizes and memory against what conversion writes and what a running port holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import torch2mlx
from torch2mlx.architectures.port import load_port
from torch2mlx.errors import OptionError
from torch2mlx.selection.machines import MAC_MEMORY, gpu_limit, smallest_mac
from torch2mlx.selection.memory import cache_bytes
from torch2mlx.sources import open_checkpoint


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_sizes_are_what_is_written(
    name: str, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    source = checkpoint(name)
    found = {s.name: s for s in torch2mlx.plan(source).strategies}
    assert found["direct"].nbytes > found["8-bit"].nbytes > found["3-bit"].nbytes
    for strategy in (found["direct"], found["4-bit"], found["mixed 3/6-bit"]):
        folder = tmp_path / strategy.name.replace("/", "-")
        torch2mlx.convert(source, folder, verify=False, **strategy.options)
        written = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        assert written == strategy.nbytes


@pytest.mark.parametrize("name", ["llama", "deepseek_v3"])
def test_caches_are_those_of_the_running_port(name: str, checkpoint: Callable[..., Path]) -> None:
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    opened = open_checkpoint(checkpoint(name))
    port = load_port(opened.config)
    opened.source.close()
    model: Any = port.build()
    cache = make_prompt_cache(model)
    mx.eval(model(mx.zeros((1, 300), mx.int32), cache=cache))
    states = [part for entry in cache for part in entry.state]
    arrays = [part for part in states if isinstance(part, mx.array)]
    mx.eval(arrays)
    assert arrays
    assert cache_bytes(port, 300) == sum(2 * array.size for array in arrays)


def test_a_limit_chooses_the_best_that_fits(checkpoint: Callable[..., Path]) -> None:
    source = checkpoint("llama")
    free = {s.name: s.runtime_memory for s in torch2mlx.plan(source, context=64).strategies}
    chosen = torch2mlx.plan(source, fit=free["6-bit"], context=64)
    assert chosen.recommended == "6-bit"
    fits = {s.name: s.fits for s in chosen.strategies}
    assert [fits[name] for name in ("direct", "8-bit", "6-bit")] == [False, False, True]
    nothing = torch2mlx.plan(source, fit="1MB", context=64)
    assert nothing.recommended is None
    assert "nothing fits" in nothing.reason


def test_the_command_names_the_options(run_cli: Any, checkpoint: Callable[..., Path]) -> None:
    shown = run_cli("plan", checkpoint("llama"))
    assert shown.code == 0
    assert "-q --q-bits 8" in shown.out
    assert run_cli("plan", checkpoint("llama"), "--json").out.startswith("{")
    with pytest.raises(OptionError, match="--context 0"):
        torch2mlx.plan(checkpoint("llama"), context=0)


def test_macs() -> None:
    assert [gpu_limit(m) for m in MAC_MEMORY] == sorted(gpu_limit(m) for m in MAC_MEMORY)
    assert smallest_mac(5 * 10**9) == 8
    assert smallest_mac(11 * 10**9) == 16
    assert smallest_mac(10**13) is None
