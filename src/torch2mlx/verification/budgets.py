"""Three sources of error, measured apart: the conversion, the dtype, the quantization.

The conversion is judged in float32 on both sides and must be at roundoff.  What rounding to the
output's dtype and quantization then cost is the user's choice; it is measured on the PyTorch
side with the very values that the written files hold, once the written folder was shown to give
the same logits in MLX.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from torch2mlx.errors import SourceError
from torch2mlx.planning.expressions import Expr
from torch2mlx.planning.plan import Output
from torch2mlx.sources.base import Checkpoint
from torch2mlx.verification import looping, tolerance
from torch2mlx.verification.agreement import WrittenRun, examine_written, written_state
from torch2mlx.verification.audit_report import AuditReport
from torch2mlx.verification.blocks import peak_bytes
from torch2mlx.verification.comparison import difference, sample_tokens
from torch2mlx.verification.details import Details, Sample
from torch2mlx.verification.generation import PROMPT, continue_text, shared_start
from torch2mlx.verification.layers import longest_sequence
from torch2mlx.verification.quality import (
    RecordedLogits,
    evaluation_text,
    measure_quality,
    tail_loop_rate,
    text_windows,
)
from torch2mlx.verification.ranges import require_float16
from torch2mlx.verification.reference import build_reference, read_state, run_reference
from torch2mlx.verification.report import Budget, Comparison

__all__ = ["Figures", "TorchSide", "evaluation_windows", "measure_budgets"]

Array = np.ndarray[Any, Any]

_WINDOWS, _WINDOW_TOKENS = 8, 128
_DTYPE_TOKENS = 128


@dataclass(frozen=True)
class Figures:
    """What `measure_budgets` found.

    Attributes:
        written: the written folder in MLX against its own values in PyTorch, or None.
        budgets: conversion, dtype, and quantization where there is one.
        skipped: part → reason, for what could not be measured.
        details: what was seen on the way.
    """

    written: Comparison | None
    budgets: tuple[Budget, ...]
    skipped: Mapping[str, str]
    details: Details = field(default_factory=Details)


def measure_budgets(
    checkpoint: Checkpoint,
    outputs: Sequence[Output],
    folder: Path,
    files: Sequence[Path],
    comparisons: Sequence[Comparison],
    audited: AuditReport,
    *,
    memory_limit: int,
    trust_remote_code: bool = False,
    loops: bool = False,
    precision: Mapping[str, str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Figures:
    """Measure all three budgets of a written folder.

    Args:
        checkpoint: the source.
        outputs: what each parameter was written from.
        folder: the written folder, complete enough for mlx-lm to load.
        files: its weight files.
        comparisons: the twin's and the blocks' results.
        audited: the audit's result, whose errors by weight serve where the model is too large.
        memory_limit: bytes; text is only evaluated where the float32 weights fit.
        trust_remote_code: allow the checkpoint's own code on the PyTorch side.
        loops: also generate texts, and count those that end in a loop.
        precision: types that modules compute in.
        progress: called with the number of tokens evaluated since its last call.

    Raises:
        NumericError: activations overflow in float16, and no other types are named.
    """
    worst = max((c.logits.relative for c in comparisons), default=float("nan"))
    conversion = Budget(
        "conversion", {"relative_l2": worst}, {"relative_l2": tolerance.CONVERSION},
        note="logits, float32 on both sides; the largest of all comparisons",
    )  # fmt: skip
    need = peak_bytes(checkpoint.config, checkpoint.state)
    if need > memory_limit:
        reason = (
            f"the whole model in float32 ({need / 1e9:.1f} GB) exceeds --memory-limit "
            f"({memory_limit / 1e9:.1f} GB)"
        )
        return Figures(None, (conversion, *_by_weight(audited)), {"text quality": reason})
    side = TorchSide(checkpoint, trust_remote_code)

    def values() -> dict[str, Any]:  # read anew each time: one set of weights exists at a time
        return written_state(outputs, files, checkpoint.state, checkpoint.source)

    prompt = _Prompt.of(checkpoint, trust_remote_code)
    run = examine_written(
        folder,
        checkpoint.config,
        values(),
        prompt=prompt.ids,
        checkpoint_folder=checkpoint.folder,
        trust_remote_code=trust_remote_code,
    )
    if not run.comparison.passed:
        return Figures(run.comparison, (conversion,), {})
    budgets = [conversion]
    divergences: tuple[tuple[float, ...], ...] = ()
    quantized = any(output.scheme is not None for output in outputs)
    with tempfile.TemporaryDirectory(prefix="torch2mlx-logits-") as scratch:
        # One model at a time: what the original predicts waits in files.
        windows, text = evaluation_windows(checkpoint, trust_remote_code) if quantized else ([], "")
        reference = side.model(read_state(checkpoint.state, checkpoint.source))
        recorded = RecordedLogits(reference, windows, Path(scratch))
        generated = _Looping(checkpoint, trust_remote_code) if quantized and loops else None
        figures = {"reference_loops": generated.rate(reference)} if generated else {}
        narrow = any(o.expr.dtype.name == "F16" for o in outputs) and not precision
        forward = require_float16 if narrow else run_reference
        expected = forward(reference, side.tokens).logits
        samples = prompt.samples(reference, run)
        del reference
        gc.collect()
        budgets.append(_dtype_budget(side, expected, outputs))
        if quantized:
            gc.collect()
            model = side.model(values())
            quality = measure_quality(recorded, model, windows, progress)
            budget, divergences = quality.budget(), quality.divergences
            figures = {**budget.figures, **figures}
            if generated is not None:
                figures["loops"] = generated.rate(model)
                text += f"; {generated.count} greedy texts of {generated.tokens} tokens"
            budgets.append(Budget(budget.name, figures, note=f"{budget.note}, {text}"))
    details = Details((), divergences, samples, run.reference)
    return Figures(run.comparison, tuple(budgets), {}, details)


def _by_weight(audited: AuditReport) -> list[Budget]:
    """Errors of the weights themselves, for models too large to run whole."""
    found = []
    for name, kinds in (("dtype", ("cast",)), ("quantization", ("quantized", "calibrated"))):
        errors = [check.rms for check in audited.checks if check.kind in kinds]
        if errors:
            figures = {"largest_weight_rms": max(errors), "mean_weight_rms": float(np.mean(errors))}
            found.append(Budget(name, figures, note="relative to each tensor's own norm"))
    return found


class TorchSide:
    """Builds PyTorch models of one checkpoint with other values."""

    def __init__(self, checkpoint: Checkpoint, trust_remote_code: bool) -> None:
        self.checkpoint = checkpoint
        self.trust_remote_code = trust_remote_code
        self.tokens = sample_tokens(checkpoint.config, _DTYPE_TOKENS)

    def model(self, state: Mapping[str, Any]) -> Any:
        return build_reference(
            self.checkpoint.config, state, self.checkpoint.folder, self.trust_remote_code
        )


class _Looping:
    """Greedy texts from the same prompts, for one model after the other."""

    def __init__(self, checkpoint: Checkpoint, trust_remote_code: bool) -> None:
        self._prompts = evaluation_windows(
            checkpoint, trust_remote_code, looping.PROMPTS, looping.PROMPT_TOKENS
        )[0]
        self.count = len(self._prompts)
        room = longest_sequence(checkpoint.config) - looping.PROMPT_TOKENS
        self.tokens = min(looping.TEXT_TOKENS, room)

    def rate(self, model: Any) -> float:
        """Share of a model's texts that end in a loop."""
        return tail_loop_rate(looping.greedy_texts(model, self._prompts, self.tokens))


def _dtype_budget(side: TorchSide, expected: Array, outputs: Sequence[Output]) -> Budget:
    """Logits with values rounded to the output's dtype, unquantized, against the original's."""
    checkpoint = side.checkpoint
    dtypes = {o.expr.dtype for o in outputs if o.expr.dtype.floating}
    narrow = {d for d in dtypes if d.itemsize < 4}
    stored = {e.dtype for e in checkpoint.state.values() if e.dtype.floating}
    names = ", ".join(sorted(d.torch_name for d in dtypes)) or "no floating-point tensors"
    if stored <= dtypes and len(dtypes) == 1:
        return Budget("dtype", {"relative_l2": 0.0}, note=f"{names}, as stored: nothing is rounded")
    if not narrow:
        return Budget("dtype", {"relative_l2": 0.0}, note=f"{names}: nothing is rounded")
    target = max(narrow, key=lambda d: sum(o.expr.size for o in outputs if o.expr.dtype == d))
    rounded = side.model(_rounded(checkpoint.state, checkpoint, target.torch_name))
    gap = difference("logits", expected, run_reference(rounded, side.tokens).logits)
    return Budget(
        "dtype", {"relative_l2": gap.relative},
        note=f"logits, weights rounded to {target.torch_name}, computed in float32",
    )  # fmt: skip


def _rounded(state: Mapping[str, Expr], checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    import torch

    dtype = getattr(torch, name)
    return {
        key: value.to(dtype).float() if value.is_floating_point() else value
        for key, value in read_state(state, checkpoint.source).items()
    }


def evaluation_windows(
    checkpoint: Checkpoint,
    trust_remote_code: bool,
    count: int = _WINDOWS,
    length: int = _WINDOW_TOKENS,
) -> tuple[list[Array], str]:
    """Windows of the built-in text or, without a tokenizer, of random tokens; and which of them.

    Args:
        checkpoint: its tokenizer is used.
        trust_remote_code: allow the tokenizer's own code.
        count: of windows.
        length: tokens of each.
    """
    from torch2mlx.packaging.tokenizer import load_tokenizer

    try:
        tokenizer = load_tokenizer(checkpoint.tokenizer_source, trust_remote_code)
        ids = list(tokenizer(evaluation_text()).input_ids)
    except SourceError:
        ids = []
    rows = checkpoint.config.get("vocab_size")
    if len(ids) >= length and (not isinstance(rows, int) or max(ids) < rows):
        return text_windows(lambda _: ids, "", count, length), "the built-in English text"
    several = range(count if count > _WINDOWS else 1)
    windows = [sample_tokens(checkpoint.config, length, seed) for seed in several]
    return windows, "random tokens, for lack of a tokenizer"


@dataclass(frozen=True)
class _Prompt:
    """The prompt that both sides continue; no ids where the checkpoint has no tokenizer."""

    tokenizer: Any = None
    ids: tuple[int, ...] = ()

    @classmethod
    def of(cls, checkpoint: Checkpoint, trust_remote_code: bool) -> _Prompt:
        from torch2mlx.packaging.tokenizer import load_tokenizer

        try:
            tokenizer = load_tokenizer(checkpoint.tokenizer_source, trust_remote_code)
            ids = tuple(tokenizer(PROMPT).input_ids)
        except SourceError:
            return cls()
        rows = checkpoint.config.get("vocab_size")
        fits = ids and (not isinstance(rows, int) or max(ids) < rows)
        return cls(tokenizer, ids) if fits else cls()

    def samples(self, reference: Any, run: WrittenRun) -> tuple[Sample, ...]:
        """What the original and the written folder make of it."""
        if not run.text:
            return ()
        theirs = continue_text(reference, self.ids)
        same = shared_start(theirs, run.text)
        pytorch, mlx = (str(self.tokenizer.decode(list(t))) for t in (theirs, run.text))
        return (Sample(PROMPT, pytorch, mlx, len(run.text), same),)
