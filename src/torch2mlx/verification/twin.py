"""The twin: a tiny random model with the same config flags, converted and run like the real one.

It proves the port for this very config in seconds, whatever the real size: long runs pass every
window and rope boundary, and the cache path is run in chunks and token by token.
"""

from __future__ import annotations

import re
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.errors import PlanError, UnsupportedError
from torch2mlx.verification import tolerance
from torch2mlx.verification.candidate import build_candidate
from torch2mlx.verification.comparison import compare_models, near_tie, sample_tokens
from torch2mlx.verification.reference import (
    allow_code,
    build_reference,
    match_rounding,
    quiet,
    reference_config,
)
from torch2mlx.verification.report import Comparison
from torch2mlx.verification.shrinking import boundaries, shrink_config
from torch2mlx.verification.sizes import INDEX_HEADS, RUN_LENGTH, Boundary

if TYPE_CHECKING:
    import torch

__all__ = ["disturb", "run_twin"]

_EMBEDDING = 0.02
_NUMBER = re.compile(r"\.\d+\.")
_SHORT = (7, 20)  # below every window of a shrunk config; past windows, before rope boundaries
_CHUNKS_SHORT = (5, *(1,) * 13)
_CHUNKS_LONG = (30, 18, *(1,) * 6)


def run_twin(
    config: Mapping[str, Any],
    *,
    max_context: int | None = None,
    seed: int = 0,
    bound: float = tolerance.CONVERSION,
    folder: Path | None = None,
    trust_remote_code: bool = False,
) -> Comparison:
    """Prove the port for a config on a tiny random model.

    Args:
        config: contents of config.json; `quantization_config` plays no part.
        max_context: longest sequence to be proven; boundaries (sliding window, long rope) of
            this many tokens or more are not crossed.  None crosses all.
        seed: of the random weights and tokens.
        bound: tolerance of the logits' relative difference.
        folder: the checkpoint's, where code of its own lies.
        trust_remote_code: run that code.

    Returns:
        the comparison; where it fails at a boundary, `notes` name the boundary and
        `agrees_up_to` is in tokens of the real model.

    Raises:
        UnsupportedError: transformers or mlx-lm has no such model.
        PlanError: what transformers saves does not fit the port.
    """
    if trust_remote_code and folder is not None:
        allow_code(config, folder)
    found = _run(config, max_context, seed, bound)
    heads = _index_heads(config)
    if heads is not None and heads < INDEX_HEADS:
        return _without_ties(found, config, heads, max_context, seed, bound)
    for attempt in range(1, 4):
        if not near_tie(found, config):
            break
        found = _run(config, max_context, seed + attempt, bound)
    crossed = boundaries(config, max_context)
    if found.passed or not crossed:
        return found
    # Which boundary is the port blind to?  Lower the proof to each, from the longest down.
    for boundary in reversed(crossed):
        limited = _run(config, boundary.original, seed, bound)
        if limited.passed:
            return replace(
                found, agrees_up_to=boundary.original, notes=(*found.notes, _explain(boundary))
            )
    switch = next((b for b in crossed if b.whole_run), None)
    if switch and found.tokens < RUN_LENGTH:
        note = (
            f"PyTorch changes its rotary embedding beyond {switch.key}={switch.original}; the "
            "port computes as if every sequence were longer than that"
        )
        return replace(found, notes=(*found.notes, note))
    return found


def _index_heads(config: Mapping[str, Any]) -> int | None:
    """Heads that score tokens for sparse attention; None where nothing is left out."""
    values = reference_config(config).get_text_config()
    heads = getattr(values, "index_n_heads", None)
    return int(heads) if heads and getattr(values, "index_topk", None) else None


def _without_ties(
    found: Comparison,
    config: Mapping[str, Any],
    heads: int,
    max_context: int | None,
    seed: int,
    bound: float,
) -> Comparison:
    """The first of several draws that differs: with few heads, ties are no accident of one."""
    for attempt in range(1, 5):
        if not found.passed:
            break
        found = _run(config, max_context, seed + attempt, bound)
    if found.passed:
        return found
    note = (
        f"sparse attention scores tokens by {heads} heads, all zero for about one token in "
        f"{2**heads}; which of equal tokens it attends to is PyTorch's choice"
    )
    return replace(found, notes=(*found.notes, note))


def _explain(boundary: Boundary) -> str:
    return (
        f"equal up to {boundary.original} tokens; differs beyond, because the port does not "
        f"apply the config's {boundary.key}={boundary.original} as PyTorch does"
    )


def _run(config: Mapping[str, Any], max_context: int | None, seed: int, bound: float) -> Comparison:
    from torch2mlx.architectures.port import load_port
    from torch2mlx.planning.expressions import Source
    from torch2mlx.sources.safetensors import SafetensorsSource

    tiny = shrink_config(config, max_context)
    port = load_port(tiny)
    reference = build_reference(tiny)
    disturb(reference, seed)
    match_rounding(reference, port.module)
    with tempfile.TemporaryDirectory(prefix="torch2mlx-twin-") as folder:
        with quiet():
            try:
                reference.save_pretrained(folder)  # type: ignore[operator]
            except Exception as error:
                raise UnsupportedError(
                    f"transformers cannot save a tiny {port.model_type!r} model: {error}; convert "
                    "without this proof with --no-verify"
                ) from error
        source = SafetensorsSource(sorted(Path(folder).glob("*.safetensors")))
        state = {
            name: Source(name, info.dtype, info.shape) for name, info in source.tensors.items()
        }
        try:
            candidate = build_candidate(port, state, source)
        except PlanError as error:
            raise PlanError(
                f"a tiny {port.model_type!r} model as transformers saves it: {error}"
            ) from error
        source.close()
    whole_run = any(b.whole_run for b in boundaries(config, max_context))
    return compare_models(
        reference,
        candidate,
        sample_tokens(tiny, RUN_LENGTH, seed),
        "twin",
        port.model_type,
        lengths=_SHORT,
        # Where the length of the whole run counts, a cache that was filled before the boundary
        # holds other values than one run past it, in PyTorch as well.
        chunkings=(_CHUNKS_SHORT,) if whole_run else (_CHUNKS_SHORT, _CHUNKS_LONG),
        bound=bound,
    )


def disturb(model: torch.nn.Module, seed: int = 0) -> None:
    """Give every weight a value of its own, so that a dropped or swapped tensor shows.

    Matrices become normal with a gain of 1.5 over the usual 1/√width, which makes soft caps and
    attention patterns visible; what initialises to a constant (norms, biases, sinks) is moved
    by 0.2; state-space decay rates only by 0.1, since they are exponents.  Embeddings are as
    small as real ones, so that the epsilon of the first norm counts; where they are the head as
    well, the final norm makes up for it.
    """
    import torch

    tied: set[int] = set()
    embeddings = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding)
    }
    saved = set(model.state_dict())
    head, table = model.get_output_embeddings(), model.get_input_embeddings()  # type: ignore[operator]
    tied_head = head is not None and head.weight is table.weight
    type_of = {
        f"{name}.weight": type(module).__name__.lower() for name, module in model.named_modules()
    }
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if name not in saved or not value.is_floating_point() or value.data_ptr() in tied:
                continue
            tied.add(value.data_ptr())
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) ^ seed)
            noise = torch.randn(value.shape, generator=generator)
            if name in embeddings:
                value.copy_(_EMBEDDING * noise)
            elif tied_head and "norm" in type_of.get(name, "") and not _NUMBER.search(name):
                value.add_(0.5 / _EMBEDDING + 0.2 * noise)
            elif "correction_bias" in name or "expert_bias" in name:
                # Scores of masked experts are set to zero, so those of others stay above it.
                value.add_(0.2 * noise.abs())
            elif "A_log" in name:
                value.add_(0.1 * noise)
            elif value.ndim < 2 or bool((value == value.flatten()[0]).all()):
                value.add_(0.2 * noise)
            else:
                depthwise = value.ndim == 3 and value.shape[1] == 1
                width = value.shape[-1] if not depthwise else value[0].numel()
                value.copy_(noise * (1.5 / width**0.5))
