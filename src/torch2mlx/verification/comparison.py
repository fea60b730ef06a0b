"""Run both models on the same tokens and say how far apart they are, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from torch2mlx.errors import ParityError
from torch2mlx.verification import tolerance
from torch2mlx.verification.candidate import build_candidate, run_cached, run_candidate
from torch2mlx.verification.reference import (
    Trace,
    build_reference,
    match_rounding,
    read_state,
    run_reference,
)
from torch2mlx.verification.report import Comparison, LayerDifference

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from mlx.nn.layers.base import Module

    from torch2mlx.architectures.port import Port
    from torch2mlx.planning.expressions import Expr, Reader

__all__ = ["compare", "compare_models", "difference", "sample_tokens"]

Array = np.ndarray[Any, Any]


def difference(place: str, reference: Array, candidate: Array) -> LayerDifference:
    """How far `candidate` is from `reference`; arrays of the same shape."""
    if not np.isfinite(candidate).all():
        return LayerDifference(place, float("inf"), float("inf"))
    gap = candidate.astype(np.float64) - reference
    norm = float(np.linalg.norm(reference.astype(np.float64).ravel()))
    relative = float(np.linalg.norm(gap.ravel())) / max(norm, 1e-30)
    return LayerDifference(place, relative, float(np.abs(gap).max(initial=0.0)))


def sample_tokens(config: Mapping[str, Any], length: int, seed: int = 0) -> Array:
    """Random token ids [length] that avoid every special id of a config."""
    vocabulary = int(_find(config, "vocab_size") or 256)
    special: set[int] = set()
    _special_ids(config, special)
    usable = [i for i in range(min(vocabulary, 4096)) if i not in special] or list(
        range(min(vocabulary, 4096))
    )
    chosen = np.random.default_rng(seed).choice(usable, size=length, replace=True)
    return chosen.astype(np.int64)


def _find(config: Mapping[str, Any], key: str) -> Any:
    """A value of the text part of a config, however nested."""
    if config.get(key) is not None:
        return config[key]
    for part in ("text_config", "llm_config", "language_config"):
        if isinstance(config.get(part), Mapping) and config[part].get(key) is not None:
            return config[part][key]
    return None


def _special_ids(config: Mapping[str, Any], found: set[int]) -> None:
    for key, value in config.items():
        if isinstance(value, Mapping):
            _special_ids(value, found)
        elif str(key).endswith(("_token_id", "_token_index")):
            found.update(
                v for v in (value if isinstance(value, list) else [value]) if v is not None
            )


def compare_models(
    reference: torch.nn.Module,
    candidate: Module,
    tokens: Array,
    part: str,
    model_type: str,
    lengths: Sequence[int] = (),
    chunkings: Sequence[Sequence[int]] = (),
    bound: float = tolerance.CONVERSION,
) -> Comparison:
    """Compare two built models on one sequence.

    Args:
        reference: PyTorch's model, float32.
        candidate: MLX's model, float32.
        tokens: ids [tokens]; the longest run.
        part: name of the comparison in the report.
        model_type: for the report.
        lengths: further, shorter runs: what depends on the length of the whole sequence
            (dynamic and long rope) is right at one length and wrong at another.
        chunkings: ways to feed the sequence through the cache (see `run_cached`).
        bound: tolerance of the logits' relative difference.
    """
    notes: list[str] = []
    runs = []
    for length in sorted({*lengths, len(tokens)}):
        torch_side = run_reference(reference, tokens[:length])
        mlx_side = run_candidate(candidate, tokens[:length])
        runs.append(
            (
                length,
                torch_side,
                mlx_side,
                difference("logits", torch_side.logits, _cut(mlx_side.logits, torch_side.logits)),
            )
        )
    # The longest run tells most; a shorter one is shown only if it alone fails.
    length, torch_side, mlx_side, logits = next(
        (r for r in reversed(runs) if not r[3].relative <= bound), runs[-1]
    )
    agrees_up_to = None
    if not logits.relative <= bound:
        agrees_up_to = _agreement(
            reference, candidate, tokens[:length], torch_side, mlx_side, bound
        )
    elif logits.relative > tolerance.ROUNDING:
        notes.append(
            f"{logits.relative:.1e} is within tolerance but more than rounding explains: the port "
            "approximates something differently, often an activation function"
        )
    if length < len(tokens):
        notes.append(f"differs in a run of {length} tokens, but not of {len(tokens)}")
    cached = None
    if logits.relative <= bound:
        for chunks in chunkings:
            found = _compare_cached(reference, candidate, tokens, chunks, runs)
            if cached is None or not found.relative <= cached.relative:
                cached = found
    top1 = float((torch_side.logits.argmax(-1) == mlx_side.logits.argmax(-1)).mean())
    return Comparison(
        part=part,
        model_type=model_type,
        tokens=length,
        layers=_layers(torch_side, mlx_side, notes),
        logits=logits,
        top1=top1,
        tolerance=bound,
        cached=cached,
        agrees_up_to=agrees_up_to,
        notes=tuple(notes),
    )


def _cut(candidate: Array, reference: Array) -> Array:
    """The candidate's logits at the reference's shape; a port may pad the vocabulary."""
    if candidate.shape == reference.shape:
        return candidate
    if candidate.shape[0] == reference.shape[0] and candidate.shape[1] > reference.shape[1]:
        return candidate[:, : reference.shape[1]]
    raise ParityError(
        f"the MLX model gives logits of shape {list(candidate.shape)}, PyTorch "
        f"{list(reference.shape)}; the port does not fit this config"
    )


def _compare_cached(
    reference: torch.nn.Module,
    candidate: Module,
    tokens: Array,
    chunks: Sequence[int],
    runs: Sequence[tuple[int, Trace, Trace, LayerDifference]],
) -> LayerDifference:
    total = sum(chunks)
    place = f"logits, through the cache in steps of {_describe(chunks)}"
    known = next((r[1] for r in runs if r[0] == total), None)
    expected = (known or run_reference(reference, tokens[:total])).logits
    try:
        return difference(place, expected, _cut(run_cached(candidate, tokens, chunks), expected))
    except (ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        place = f"{place} ({type(error).__name__}: {error})"
        return LayerDifference(place, float("inf"), float("inf"))


def _describe(chunks: Sequence[int]) -> str:
    """The chunks in words: [5, 1, 1, 1] becomes 5, 1 × 3."""
    parts: list[list[int]] = []
    for n in chunks:
        if parts and parts[-1][0] == n:
            parts[-1][1] += 1
        else:
            parts.append([n, 1])
    return ", ".join(f"{n} × {count}" if count > 1 else str(n) for n, count in parts)


def _layers(torch_side: Trace, mlx_side: Trace, notes: list[str]) -> tuple[LayerDifference, ...]:
    if len(torch_side.layers) != len(mlx_side.layers):
        notes.append(
            f"layers not compared: PyTorch has {len(torch_side.layers)}, the port "
            f"{len(mlx_side.layers)}"
        )
        return ()
    found = []
    for index, (a, b) in enumerate(zip(torch_side.layers, mlx_side.layers, strict=True)):
        if a is not None and b is not None and a.shape == b.shape:
            found.append(difference(f"layer {index}", a, b))
    return tuple(found)


def _agreement(
    reference: torch.nn.Module,
    candidate: Module,
    tokens: Array,
    torch_side: Trace,
    mlx_side: Trace,
    bound: float,
) -> int:
    """Longest prefix over which the models agree, given that the whole sequence does not.

    In a causal model the first wrong position of the long run gives it at once.  Where the
    outcome depends on the length of the run itself, it is found by bisection.
    """
    a, b = torch_side.logits, _cut(mlx_side.logits, torch_side.logits)
    gaps = np.linalg.norm(np.nan_to_num(b, nan=np.inf, posinf=np.inf) - a, axis=-1)
    wrong = gaps > tolerance.POSITION * np.linalg.norm(a, axis=-1)
    first = int(np.argmax(wrong)) if wrong.any() else 0

    def agrees(length: int) -> bool:
        if length == 0:
            return True
        expected = run_reference(reference, tokens[:length]).logits
        found = _cut(run_candidate(candidate, tokens[:length]).logits, expected)
        return difference("logits", expected, found).relative <= bound

    if first and agrees(first):
        return first
    low, high = 0, len(tokens)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if agrees(middle) else (low, middle)
    return low


def compare(
    config: Mapping[str, Any],
    state: Mapping[str, Expr],
    reader: Reader,
    *,
    part: str = "all layers",
    tokens: Array | None = None,
    port: Port | None = None,
    lengths: Sequence[int] = (),
    chunkings: Sequence[Sequence[int]] = (),
    bound: float = tolerance.CONVERSION,
    folder: Path | None = None,
    trust_remote_code: bool = False,
) -> Comparison:
    """Convert in memory and compare with PyTorch.

    Args:
        config: contents of config.json.
        state: tensors in hub naming.
        reader: what their expressions read from.
        part: name of the comparison in reports.
        tokens: ids; by default 24 random ones.
        port: the port, where the caller has it loaded already.
        lengths: of further runs, see `compare_models`.
        chunkings: of cached runs, see `compare_models`.
        bound: tolerance of the logits' relative difference.
        folder: the checkpoint's, where code of its own lies.
        trust_remote_code: run that code.

    Memory: the float32 weights twice, once on each side.

    Raises:
        UnsupportedError: transformers or mlx-lm has no such model.
        PlanError: state and config do not fit together.
    """
    from torch2mlx.architectures.port import load_port

    port = port or load_port(dict(config))
    if tokens is None:
        tokens = sample_tokens(config, 24)
    reference = build_reference(config, read_state(state, reader), folder, trust_remote_code)
    match_rounding(reference, port.module)
    candidate = build_candidate(port, state, reader)
    return compare_models(
        reference, candidate, tokens, part, port.model_type, lengths, chunkings, bound
    )
