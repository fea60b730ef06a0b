"""Run both models on the same tokens and say how far apart they are, layer by layer."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
    swap_gelu,
)
from torch2mlx.verification.report import Comparison, LayerDifference
from torch2mlx.verification.sizes import EXPERT_KEYS

if TYPE_CHECKING:
    import torch
    from mlx.nn.layers.base import Module

    from torch2mlx.architectures.port import Port
    from torch2mlx.planning.expressions import Expr, Reader

__all__ = [
    "compare",
    "compare_cached",
    "compare_models",
    "compare_traces",
    "difference",
    "near_tie",
    "sample_tokens",
]

Array = np.ndarray[Any, Any]


def difference(place: str, reference: Array, candidate: Array) -> LayerDifference:
    """How far `candidate` is from `reference`, both [..., positions, width]."""
    gap = np.nan_to_num(candidate.astype(np.float64), nan=np.inf, posinf=np.inf) - reference
    norm = float(np.linalg.norm(reference.astype(np.float64).ravel()))
    return LayerDifference(
        place,
        relative=float(np.linalg.norm(gap.ravel())) / max(norm, 1e-30),
        maximum=float(np.abs(gap).max(initial=0.0)),
        positions=float(_differing(reference, gap).mean()),
    )


def _differing(reference: Array, gap: Array) -> Array:
    """Which positions differ on their own, bool [..., positions]."""
    size = np.linalg.norm(gap, axis=-1)
    return ~(size <= tolerance.POSITION * np.linalg.norm(reference, axis=-1) + 1e-12)  # type: ignore[no-any-return]


def near_tie(comparison: Comparison, config: Mapping[str, Any]) -> bool:
    """Whether a difference looks like a router's choice between two equal experts.

    The order of summation may then decide which expert a token goes to.  A single token differs
    completely in one layer and the rest does not, and other tokens give no difference at all;
    a wrong conversion shows with any tokens.
    """
    first = comparison.first_divergence
    routed = any(_find(config, key) for key in EXPERT_KEYS)
    return first is not None and routed and 0 < first.positions <= tolerance.TIED


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
    found = _compare_models(
        reference, candidate, tokens, part, model_type, lengths, chunkings, bound
    )
    if tolerance.ROUNDING < found.logits.relative <= tolerance.GELU and swap_gelu(reference):
        other = _compare_models(reference, candidate, tokens, part, model_type, (), (), bound)
        swap_gelu(reference)
        if other.logits.relative <= tolerance.ROUNDING:
            return _with_gelu_note(found)
    return found


def _with_gelu_note(found: Comparison) -> Comparison:
    """A comparison that fails, because equal forms of GELU would make it equal."""
    note = (
        "the port computes the other form of GELU (tanh for erf or erf for tanh), which alone "
        f"moves the logits by {found.logits.relative:.1e}; with equal forms they agree"
    )
    # A tiny model within the bound proves nothing of a deep one: no more than rounding may be left.
    return replace(found, tolerance=tolerance.ROUNDING, notes=(*found.notes, note))


def _compare_models(
    reference: torch.nn.Module,
    candidate: Module,
    tokens: Array,
    part: str,
    model_type: str,
    lengths: Sequence[int],
    chunkings: Sequence[Sequence[int]],
    bound: float,
) -> Comparison:
    worst: Comparison | None = None
    expected = {}
    for length in sorted({*lengths, len(tokens)}, reverse=True):
        torch_side = run_reference(reference, tokens[:length])
        expected[length] = torch_side.logits
        found = compare_traces(
            torch_side, run_candidate(candidate, tokens[:length]), part, model_type, bound
        )
        if worst is None:
            worst = found
        elif worst.passed and not found.passed:
            # The longest run tells most; a shorter one is shown only if it alone fails.
            note = f"differs in a run of {length} tokens, but not of {worst.tokens}"
            worst = replace(found, notes=(*found.notes, note))
    assert worst is not None
    for chunks in chunkings if worst.passed else ():
        total = sum(chunks)
        if total not in expected:
            expected[total] = run_reference(reference, tokens[:total]).logits
        cached = compare_cached(candidate, tokens, chunks, expected[total])
        if worst.cached is None or not cached.relative <= worst.cached.relative:
            worst = replace(worst, cached=cached)
    return worst


def compare_traces(
    torch_side: Trace,
    mlx_side: Trace,
    part: str,
    model_type: str,
    bound: float = tolerance.CONVERSION,
) -> Comparison:
    """Compare what two models computed for the same sequence.

    Args:
        torch_side: PyTorch's trace.
        mlx_side: MLX's trace.
        part: name of the comparison in the report.
        model_type: for the report.
        bound: tolerance of the logits' relative difference.
    """
    expected, found = torch_side.logits, _cut(mlx_side.logits, torch_side.logits)
    logits = difference("logits", expected, found)
    notes: list[str] = []
    if not logits.relative <= bound:
        # Models are causal: what differs from some position on was equal before it.
        wrong = _differing(expected, np.nan_to_num(found, nan=np.inf, posinf=np.inf) - expected)
        if first := int(np.argmax(wrong)):
            notes.append(f"equal over the first {first} tokens of the run")
    elif logits.relative > tolerance.ROUNDING:
        notes.append(
            f"{logits.relative:.1e} is within tolerance but more than rounding explains: the port "
            "approximates something differently, often an activation function"
        )
    return Comparison(
        part=part,
        model_type=model_type,
        tokens=len(expected),
        layers=_layers(torch_side, mlx_side, notes),
        logits=logits,
        top1=float((expected.argmax(-1) == found.argmax(-1)).mean()),
        tolerance=bound,
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


def compare_cached(
    candidate: Module, tokens: Array, chunks: Sequence[int], expected: Array
) -> LayerDifference:
    """Compare logits computed through the cache with PyTorch's of the whole sequence.

    Args:
        candidate: MLX's model.
        tokens: ids, at least sum(chunks).
        chunks: lengths of the pieces.
        expected: PyTorch's logits [sum(chunks), vocabulary].
    """
    place = f"logits through the cache, in steps of {_describe(chunks)}"
    try:
        return difference(place, expected, _cut(run_cached(candidate, tokens, chunks), expected))
    except (ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        # A port whose cache path breaks is as wrong as one whose numbers differ.
        place = f"{place} ({type(error).__name__}: {error})"
        return LayerDifference(place, float("inf"), float("inf"), 1.0)


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


def compare(
    config: Mapping[str, Any],
    state: Mapping[str, Expr],
    reader: Reader,
    *,
    part: str = "all layers",
    tokens: Array | None = None,
    port: Port | None = None,
    bound: float = tolerance.CONVERSION,
) -> Comparison:
    """Convert in memory and compare with PyTorch, at once and through the cache.

    Args:
        config: contents of config.json.
        state: tensors in hub naming.
        reader: what their expressions read from.
        part: name of the comparison in reports.
        tokens: ids, at least two; by default 24 random ones.
        port: the port, where the caller has it loaded already.
        bound: tolerance of the logits' relative difference.

    Memory: the float32 weights once; PyTorch runs first and is released before MLX.

    Raises:
        UnsupportedError: transformers or mlx-lm has no such model.
        PlanError: state and config do not fit together.
    """
    from torch2mlx.architectures.port import load_port

    port = port or load_port(dict(config))
    if tokens is None:
        tokens = sample_tokens(config, 24)

    model = build_reference(config, read_state(state, reader))
    match_rounding(model, port.module)
    torch_side = run_reference(model, tokens)
    del model
    gc.collect()  # modules refer to each other, so only the collector frees their weights
    candidate = build_candidate(port, state, reader)
    found = compare_traces(
        torch_side, run_candidate(candidate, tokens), part, port.model_type, bound
    )
    if not found.passed:
        return found
    chunks = (len(tokens) - 1, 1)
    return replace(found, cached=compare_cached(candidate, tokens, chunks, torch_side.logits))
