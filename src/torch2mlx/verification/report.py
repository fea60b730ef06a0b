"""What the parity gate found, as frozen values that print, compare and serialise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

from torch2mlx.errors import ParityError
from torch2mlx.verification.details import Details

__all__ = ["Budget", "Comparison", "LayerDifference", "ParityReport", "explain", "require"]


@dataclass(frozen=True)
class LayerDifference:
    """How far MLX is from PyTorch at one place of the model.

    Attributes:
        place: "layer 3", "logits", "logits, token by token".
        relative: ‖mlx - torch‖ / ‖torch‖ (L2); infinite where MLX gives NaN or Inf.
        maximum: largest absolute difference.
        positions: share of the positions, 0 to 1, that differ on their own.
    """

    place: str
    relative: float
    maximum: float
    positions: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; non-finite numbers become None, which JSON can hold."""
        return {
            "place": self.place,
            "relative": self.relative if isfinite(self.relative) else None,
            "maximum": self.maximum if isfinite(self.maximum) else None,
            "positions": self.positions,
        }


@dataclass(frozen=True)
class Comparison:
    """One run of both models on the same tokens.

    Attributes:
        part: what was compared: "twin", "all layers", "layer 17 of 32".
        model_type: of the config.
        tokens: length of the longest run.
        layers: output of every layer that both sides have in the same shape, in order.
        logits: at the end of the model, over the whole run.
        cached: the logits again, through the cache (chunked prefill, then token by token);
            None where the cache was not run.
        top1: share of positions, 0 to 1, whose most likely token is the same.
        tolerance: bound on the relative difference of `logits` and `cached`.
        agrees_up_to: a context length up to which equality was proven although the whole
            comparison failed (twin only, in tokens of the real model); None if there is none.
        notes: limits of the comparison and hints at the cause.
    """

    part: str
    model_type: str
    tokens: int
    layers: tuple[LayerDifference, ...]
    logits: LayerDifference
    top1: float
    tolerance: float
    cached: LayerDifference | None = None
    agrees_up_to: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """The logits agree, at once and through the cache."""
        return self.logits.relative <= self.tolerance and (
            self.cached is None or self.cached.relative <= self.tolerance
        )

    @property
    def first_divergence(self) -> LayerDifference | None:
        """The first place that differs, in the order of computation; None if the part passed."""
        if self.passed:
            return None
        if self.logits.relative <= self.tolerance:
            return self.cached
        for layer in self.layers:
            if not layer.relative <= self.tolerance:
                return layer
        return self.logits

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        first = self.first_divergence
        return {
            "part": self.part,
            "model_type": self.model_type,
            "passed": self.passed,
            "tokens": self.tokens,
            "tolerance": self.tolerance,
            "logits": self.logits.to_dict(),
            "cached": self.cached.to_dict() if self.cached else None,
            "top1": self.top1,
            "layers": [layer.to_dict() for layer in self.layers],
            "first_divergence": first.place if first else None,
            "agrees_up_to": self.agrees_up_to,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Budget:
    """One source of error, apart from the others.

    Attributes:
        name: "conversion" (float32 on both sides), "dtype" (values after the cast) or
            "quantization" (dequantized values).
        figures: measured numbers by name ("relative_l2", "mean_kl", "top1", "perplexity" ...).
        limits: upper bounds of some of them; a figure without one only informs.
        note: where and on what it was measured.
    """

    name: str
    figures: Mapping[str, float]
    limits: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def passed(self) -> bool:
        """Every limited figure was measured and is within its bound (NaN is not)."""
        return all(
            key in self.figures and self.figures[key] <= bound for key, bound in self.limits.items()
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "passed": self.passed,
            "figures": {k: v if isfinite(v) else None for k, v in self.figures.items()},
            "limits": dict(self.limits),
            "note": self.note,
        }


@dataclass(frozen=True)
class ParityReport:
    """The outcome of the gate.

    Attributes:
        comparisons: twin and blocks, in the order they ran.
        budgets: conversion, dtype, quantization.
        audit: the tensor audit's own summary; its key "passed" counts.
        skipped: part → reason, for each part that did not run.
        details: for pictures and later checks; no part of `to_dict`.
    """

    comparisons: tuple[Comparison, ...] = ()
    budgets: tuple[Budget, ...] = ()
    audit: Mapping[str, Any] | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    details: Details = field(default_factory=Details, compare=False, repr=False)

    @property
    def passed(self) -> bool:
        """Everything that ran passed, and something ran."""
        ran = bool(self.comparisons or self.budgets or self.audit)
        audited = self.audit is None or bool(self.audit.get("passed"))
        return (
            ran
            and audited
            and all(c.passed for c in self.comparisons)
            and all(b.passed for b in self.budgets)
        )

    def with_figure(self, budget: str, name: str, value: float) -> ParityReport:
        """A copy with one more figure in a budget, where there is such a budget."""
        budgets = tuple(
            replace(b, figures={**b.figures, name: value}) if b.name == budget else b
            for b in self.budgets
        )
        return replace(self, budgets=budgets)

    @property
    def first_divergence(self) -> tuple[Comparison, LayerDifference] | None:
        """The first comparison that failed, and where in it."""
        for comparison in self.comparisons:
            place = comparison.first_divergence
            if place is not None:
                return comparison, place
        return None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and the manifest."""
        return {
            "passed": self.passed,
            "comparisons": [c.to_dict() for c in self.comparisons],
            "budgets": [b.to_dict() for b in self.budgets],
            "audit": dict(self.audit) if self.audit is not None else None,
            "skipped": dict(self.skipped),
        }


def explain(comparison: Comparison, converting: bool = True) -> str:
    """One message for a user: which part differs, where first, by how much and what to do.

    Args:
        comparison: what failed; the text is empty if it passed.
        converting: the model is being written; False: the folder exists already.
    """
    first = comparison.first_divergence
    if first is None:
        return ""
    gap = "NaN or Inf" if not isfinite(first.relative) else f"relative L2 {first.relative:.1e}"
    lines = [
        (
            f"{comparison.model_type}: the MLX model differs from PyTorch ({comparison.part}), "
            f"first at {first.place}: {gap} in {first.positions:.0%} of {comparison.tokens} "
            f"positions, expected at most {comparison.tolerance:.0e}"
        )
    ]
    if first is not comparison.logits and comparison.logits.relative > comparison.tolerance:
        top1 = f"{comparison.top1:.0%}"
        lines.append(
            f"at the logits: {comparison.logits.relative:.1e}, the same next token in {top1}"
        )
    lines.extend(comparison.notes)
    limit = comparison.agrees_up_to
    if limit and converting:
        lines.append(
            f"use --max-context {limit} to accept a result that is proven up to {limit} tokens, or "
            "--no-verify to skip the proof"
        )
    elif limit:
        lines.append(f"use --max-context {limit} to check it on texts of up to {limit} tokens")
    elif converting:
        lines.append(
            "the port or the config does not describe this model; nothing was published. Check "
            "config.json, try another version of mlx-lm, or use --no-verify to skip the proof"
        )
    else:
        lines.append("do not use this folder; convert the source again")
    return "\n  ".join(lines)


def require(comparison: Comparison, converting: bool = True) -> None:
    """Raise if a comparison failed; arguments as of `explain`.

    Raises:
        ParityError: with the text of `explain`.
    """
    if not comparison.passed:
        raise ParityError(explain(comparison, converting))
