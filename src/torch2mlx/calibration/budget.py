"""Bits for a size that the user names: so many bits per weight, or what fits in a memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from torch2mlx.architectures.port import Port
from torch2mlx.calibration.allocation import Choice, allocate, sensitivities
from torch2mlx.calibration.conversion import text_ids
from torch2mlx.calibration.engine import find_head
from torch2mlx.dtypes import to_torch
from torch2mlx.errors import OptionError, SourceError, UnsupportedError
from torch2mlx.planning.plan import Output, Plan
from torch2mlx.planning.regions import full
from torch2mlx.quantization.kernel import dequantize_rows, quantize_rows
from torch2mlx.quantization.recipe import QuantOptions
from torch2mlx.quantization.scheme import MODES, Scheme
from torch2mlx.selection.fitting import Running, describe_misfit
from torch2mlx.sources.base import Checkpoint
from torch2mlx.verification.layers import longest_sequence

__all__ = ["Chosen", "Sensitivity", "choose_for_memory", "choose_for_size"]

_SEQUENCES, _WINDOW = 8, 256  # to measure with
_HEADER = 16  # bytes that an entry of a file's header may grow by, with larger offsets
_KNOWN = 4  # bits whose predicted divergence tells the curvature of a module


@dataclass(frozen=True)
class Chosen:
    """Bits for every module that the user did not name.

    Attributes:
        options: with an override for each module.
        note: what was chosen.
        predicted: mean KL divergence (nats a token) that rounding to nearest then costs; None: not
            measured.
    """

    options: QuantOptions
    note: str
    predicted: float | None = None


class Sensitivity:
    """What each width of each module costs, measured once for each base format.

    Args:
        checkpoint: the source.
        texts: files to measure with; none: the texts of the Python installation.
        max_context: longest sequence to run.
        trust_remote_code: allow the checkpoint's own code.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        texts: Sequence[str] = (),
        max_context: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.checkpoint = checkpoint
        self._texts = texts
        self._max_context = max_context
        self._trust = trust_remote_code
        self._known: dict[tuple[Scheme, frozenset[str]], Mapping[str, list[Choice]]] = {}
        self._squares: dict[tuple[str, Scheme], float] = {}

    def choices(self, outputs: Sequence[Output], base: Scheme) -> Mapping[str, list[Choice]]:
        """Choices of the modules that are quantized in the base format, by module.

        Args:
            outputs: of a plan.
            base: affine; its group size is kept.

        Raises:
            UnsupportedError: layers of this model cannot be run on their own.
        """
        import torch

        from torch2mlx.calibration.blocks import Blocks

        wanted = [o for o in outputs if o.scheme == base and o.packed is None]
        key = base, frozenset(o.name for o in wanted)
        if key in self._known:
            return self._known[key]
        checkpoint = self.checkpoint
        length = min(_WINDOW, self._max_context or _WINDOW, longest_sequence(checkpoint.config))
        ids = text_ids(checkpoint, self._texts, _SEQUENCES * length, length, self._trust)
        blocks = Blocks(
            checkpoint.config,
            checkpoint.state,
            checkpoint.source,
            torch.device("cuda" if torch.cuda.is_available() else "cpu"),
            checkpoint.folder,
            self._trust,
        )
        self._known[key] = sensitivities(blocks, wanted, find_head(outputs), ids)
        return self._known[key]

    def predict(self, plan: Plan, choices: Mapping[str, Sequence[Choice]], base: Scheme) -> float:
        """Mean KL divergence (nats a token) that rounding a plan's modules to nearest costs.

        Args:
            plan: any formats.
            choices: measured, of `base`.
            base: format that they were measured for.

        To second order: it overstates the cost of very few bits.
        """
        total = 0.0
        for output in plan.outputs:
            known = {choice.bits: choice for choice in choices.get(output.module, ())}
            if output.scheme is None or output.packed is not None or not known:
                continue
            same = output.scheme.affine and output.scheme.group_size == base.group_size
            if same and output.scheme.bits in known:
                total += known[output.scheme.bits].divergence
                continue
            measured = Scheme(_KNOWN, base.group_size)
            ratio = self._square(output, output.scheme) / self._square(output, measured)
            total += known[_KNOWN].divergence * ratio
        return total

    def _square(self, output: Output, scheme: Scheme) -> float:
        """Squared norm of what rounding to nearest does to an output's values."""
        key = output.name, scheme
        if key not in self._squares:
            expr = output.expr
            bits = expr.read(full(expr.shape), self.checkpoint.source)
            bits = np.ascontiguousarray(bits).reshape(-1, expr.shape[-1])
            rounded = dequantize_rows(quantize_rows(bits, expr.dtype, scheme), expr.dtype, scheme)
            values = to_torch(bits, expr.dtype).float().numpy()
            self._squares[key] = max(float(np.square(rounded - values).sum()), 1e-30)
        return self._squares[key]


def choose_for_size(
    sensitivity: Sensitivity, plan: Plan, asked: QuantOptions, target: float
) -> Chosen:
    """Bits by module for a number of bits per weight of the whole model.

    Args:
        sensitivity: of the modules.
        plan: at the base format.
        asked: the user's options.
        target: stored bits for each weight, unquantized tensors included.

    Raises:
        OptionError: the target is too small for this model.
        UnsupportedError: layers of this model cannot be run on their own.
    """
    found = _allocated(sensitivity, plan, asked, int(target * plan.parameters / 8))
    return replace(found, note=f"{target:g} bits per weight: {found.note}")


def choose_for_memory(
    sensitivity: Sensitivity,
    port: Port,
    planned: Callable[[QuantOptions], Plan],
    asked: QuantOptions,
    running: Running,
) -> Chosen:
    """Bits by module so that the running model fits a memory.

    Args:
        sensitivity: of the modules.
        port: of the config.
        planned: makes a plan.
        asked: the user's options, in the affine format.
        running: memory beside the weights, and the limit.

    Raises:
        OptionError: nothing fits; the message says what would.
    """

    def at(bits: int) -> QuantOptions:
        return replace(asked, scheme=Scheme(bits, asked.scheme.group_size))

    widths = sorted(MODES["affine"].bits, reverse=True)
    where = f"{(running.limit or 0) / 1e9:.3g} GB with {running.context:,} tokens"
    if running.caches is None:
        where += " (whose caches this port does not tell)"
    widest, least = planned(at(widths[0])), planned(at(widths[-1]))
    if widest.nbytes <= running.room:
        return Chosen(at(widths[0]), f"{where}: {widths[0]} bits for every module fit")
    if least.nbytes > running.room:
        raise OptionError(describe_misfit(running, port, least.nbytes))
    stored = sum(spec.nbytes for output in least.outputs for spec in output.specs)
    entries = sum(len(output.specs) for output in least.outputs)
    headers = (least.nbytes - stored) * len(widest.shards) // len(least.shards)
    # With the fewest bits for every module nothing is mixed, and that is known to fit.
    budget = max(stored, running.room - headers - _HEADER * entries)
    try:
        found = _allocated(sensitivity, planned(asked), asked, budget)
    except (UnsupportedError, SourceError) as error:
        bits = next(b for b in widths if planned(at(b)).nbytes <= running.room)
        reason = str(error).splitlines()[0]
        return Chosen(
            at(bits),
            f"{where}: {bits} bits for every module; which matter most is unknown: {reason}",
        )
    return replace(found, note=f"{where}: {found.note}")


def _allocated(sensitivity: Sensitivity, plan: Plan, asked: QuantOptions, budget: int) -> Chosen:
    """Bits for a number of bytes of all tensors, unquantized ones included."""
    choices = sensitivity.choices(plan.outputs, asked.base)
    free = [o for o in plan.outputs if o.scheme is not None and o.module in choices]
    fixed = sum(s.nbytes for o in plan.outputs if o not in free for s in o.specs)
    found = allocate(choices, budget - fixed)
    counts = Counter(found.bits.values())
    note = (
        ", ".join(f"{counts[bits]} modules at {bits} bits" for bits in sorted(counts))
        + f"; predicted KL divergence, rounded to nearest: {found.divergence:.3g}"
    )
    chosen = replace(asked, overrides=(*found.bits.items(), *asked.overrides))
    return Chosen(chosen, note, found.divergence)
