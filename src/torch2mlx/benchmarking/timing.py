"""Time engines: streams of tokens, and calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch2mlx.benchmarking.machine import EnergyMeter
from torch2mlx.benchmarking.rows import Spread

__all__ = ["Stream", "Words", "time_calls", "time_streams"]

Stream = Callable[[Sequence[int], int], Iterator[int]]
"""(ids of a prompt, number of tokens) → greedy tokens, each when it is known here."""

Words = Callable[[], Sequence[int]]
"""Makes the ids of a prompt, which the time to the first token contains."""


@dataclass(frozen=True)
class _Pass:
    """Every prompt answered once: seconds and tokens."""

    first: float
    prefill: float
    prompt_tokens: int
    decode: float
    decoded: int
    joules: float | None


def time_streams(
    stream: Stream, prompts: Sequence[Words], tokens: int, repeats: int, meter: EnergyMeter
) -> dict[str, Any]:
    """Figures of a language model, as a row's fields.

    One pass over all prompts warms up and is not counted.  A pass gives one value of each figure,
    so the spread is that of the passes.

    Args:
        stream: the engine.
        prompts: at least one.
        tokens: to generate for each; nothing stops earlier.
        repeats: passes that count.
        meter: of energy.
    """
    _pass(stream, prompts, tokens, meter)
    found = [_pass(stream, prompts, tokens, meter) for _ in range(repeats)]
    figures: dict[str, Any] = {
        "ttft_s": Spread.of(p.first / len(prompts) for p in found),
        "prefill_tps": Spread.of(p.prompt_tokens / p.prefill for p in found),
        "decode_tps": Spread.of(p.decoded / p.decode for p in found if p.decoded),
        "energy_j": Spread.of(p.joules for p in found if p.joules is not None),
    }
    missing = {"latency_s": "a language model: see ttft_s and decode_tps"}
    if figures["decode_tps"] is None:
        missing["decode_tps"] = "one token a prompt: nothing is decoded after the first"
    if meter.reason is not None:
        missing["energy_j"] = meter.reason
    return figures | {"not_measured": missing}


def _pass(stream: Stream, prompts: Sequence[Words], tokens: int, meter: EnergyMeter) -> _Pass:
    first = prefill = decode = 0.0
    read = decoded = 0
    energy = meter.read()
    for prompt in prompts:
        start = time.perf_counter()
        ids = prompt()
        encoded = time.perf_counter()
        made = stream(ids, tokens)
        next(made)
        begun = time.perf_counter()
        rest = sum(1 for _ in made)
        ended = time.perf_counter()
        first += begun - start
        prefill += begun - encoded
        decode += ended - begun
        read += len(ids)
        decoded += rest
    joules = meter.joules_since(energy) if energy else None
    return _Pass(first, prefill, read, decode, decoded, joules)


def time_calls(call: Callable[[], None], repeats: int, meter: EnergyMeter) -> dict[str, Any]:
    """Figures of a module, as a row's fields; two calls that are not counted come first.

    Args:
        call: computes all outputs and waits for them.
        repeats: calls that count.
        meter: of energy.
    """
    call()
    call()
    seconds, joules = [], []
    for _ in range(repeats):
        energy = meter.read()
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
        if energy:
            joules.append(meter.joules_since(energy))
    words = "a module: it generates no tokens"
    missing = dict.fromkeys(("ttft_s", "prefill_tps", "decode_tps"), words)
    if meter.reason is not None:
        missing["energy_j"] = meter.reason
    return {
        "latency_s": Spread.of(seconds),
        "energy_j": Spread.of(joules),
        "not_measured": missing,
    }
