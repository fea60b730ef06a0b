"""Quantized values and bits that depend on what the model computes, and attempts until they do.

What a conversion does between its plan and its files where the user asked for more than rounding
to nearest: bits for a size, calibration, and, where bounds on the quality do not hold, the layers
to blame and the next cure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.errors import QualityError

if TYPE_CHECKING:
    from torch2mlx.checkpoint_route import CheckpointConversion, Conversion
    from torch2mlx.cures import Attempts, Cure
    from torch2mlx.verification.blame import Suspect
    from torch2mlx.verification.report import Comparison, ParityReport

__all__ = ["Tuning"]


class Tuning:
    """Carries one conversion through its attempts.

    Args:
        conversion: planned, its port proven.
        source: what the source files are, in plain values.
    """

    def __init__(self, conversion: CheckpointConversion, source: Mapping[str, Any]) -> None:
        self.conversion = conversion
        self.asked = conversion.options
        self._source = source
        self._checkpoint = conversion.checkpoint
        self._proven: tuple[Comparison, ...] = (
            () if conversion.gate is None else tuple(conversion.gate.comparisons)
        )
        self._attempts: Attempts | None = None

    def run(self, convert: Callable[[], Conversion]) -> Conversion:
        """Tune and convert; with `auto`, again and again until the bounds hold.

        Args:
            convert: writes, verifies and publishes the plan.

        Raises:
            QualityError: a bound does not hold; names the layers to blame and the cure.
            DestinationError: another run calibrates for this destination.
        """
        if not (self.asked.calibrate or self.asked.auto):
            return self._attempt(convert)
        from torch2mlx.calibration.conversion import calibration_work

        with calibration_work(self.conversion.destination, self.asked.wait) as folder:
            return self._try_all(folder, convert) if self.asked.auto else self._attempt(convert)

    def _try_all(self, folder: Path, convert: Callable[[], Conversion]) -> Conversion:
        from torch2mlx.cures import Attempts

        self._attempts = Attempts(folder, self.asked, self._source)
        while True:
            cure = self._attempts.cure
            self._restart(cure)
            try:
                return self._attempt(convert)
            except QualityError as failure:
                if self._attempts.cure is cure:  # nothing is left to try
                    raise
                self.conversion.progress.note(str(failure))
                self.conversion.progress.note(f"trying {self._attempts.cure.text}")

    def _restart(self, cure: Cure) -> None:
        """Plan anew with the options of an attempt."""
        conversion = self.conversion
        conversion.options = cure.options
        conversion.checkpoint = self._checkpoint
        conversion.plan = conversion.planned(cure.options.quant_options())
        conversion.predicted = None
        self._renew_gate()

    def _renew_gate(self) -> None:
        conversion = self.conversion
        conversion.gate = conversion.new_gate()
        if conversion.gate is not None:
            conversion.gate.comparisons.extend(self._proven)

    def _attempt(self, convert: Callable[[], Conversion]) -> Conversion:
        options = self.conversion.options
        if options.sized:
            with self.conversion.timed("allocate"):
                self._choose_bits()
        if options.calibrate:
            with self.conversion.timed("calibrate"):
                self._calibrate()
        self._renew_gate()
        self.conversion.judge = self._judge
        return convert()

    def _choose_bits(self) -> None:
        """Give the plan bits by module, those that the user named aside."""
        from torch2mlx.calibration.budget import Sensitivity, choose_for_memory, choose_for_size
        from torch2mlx.selection.fitting import running_memory

        conversion, options = self.conversion, self.conversion.options
        asked = options.quant_options()
        assert asked is not None
        sensitivity = Sensitivity(
            conversion.checkpoint,
            texts=options.calibration_text,
            max_context=options.max_context,
            trust_remote_code=options.trust_remote_code,
        )
        with conversion.progress.stage("Measuring what each module's bits are worth"):
            if options.fit is not None:
                running = running_memory(conversion.port, context=options.context, fit=options.fit)
                conversion.running = running
                found = choose_for_memory(
                    sensitivity, conversion.port, conversion.planned, asked, running
                )
            else:
                assert options.target_bpw is not None
                found = choose_for_size(sensitivity, conversion.plan, asked, options.target_bpw)
        conversion.progress.note(found.note)
        plan = conversion.planned(found.options)
        conversion.plan = replace(plan, notes=(*plan.notes, found.note))
        conversion.predicted = found.predicted

    def _calibrate(self) -> None:
        """Give the plan calibrated tensors, which the checkpoint's reader then knows too."""
        from torch2mlx.calibration.conversion import calibrate_outputs
        from torch2mlx.planning.shards import parse_size

        conversion, options = self.conversion, self.conversion.options
        plan = conversion.plan
        found = calibrate_outputs(
            conversion.checkpoint,
            plan.outputs,
            conversion.destination,
            texts=options.calibration_text,
            tokens=options.calibration_tokens,
            samples=options.calibration_samples or 0,
            memory_limit=parse_size(options.memory_limit),
            distill=options.distill,
            max_context=options.max_context,
            trust_remote_code=options.trust_remote_code,
            progress=conversion.progress,
        )
        for note in found.notes:
            conversion.progress.note(note)
        conversion.checkpoint = replace(conversion.checkpoint, source=found.source)
        notes = (*plan.notes, *found.notes)
        conversion.plan = replace(plan, outputs=found.outputs, notes=notes)

    def _judge(self, report: ParityReport, folder: Path) -> None:
        """Refuse a written folder beyond the bounds; note every attempt."""
        from torch2mlx.cures import Attempt, Cure, cures, layer_numbers

        conversion, plan = self.conversion, self.conversion.plan
        problems = self.asked.bounds.problems(report)
        figures = next((b.figures for b in report.budgets if b.name == "quantization"), {})
        suspects = self._suspects(folder) if problems else ()
        now = self._attempts.cure if self._attempts else Cure("as asked", self.asked)
        attempt = Attempt(
            cure=now.text,
            changes=self._attempts.changes if self._attempts else {},
            bits_per_weight=plan.bits_per_weight,
            figures=dict(figures),
            problems=tuple(problems),
            blamed=tuple(s.describe() for s in suspects[:3]),
        )
        if self._attempts is not None:
            done = (*self._attempts.done, attempt)
            conversion.decisions["attempts"] = [asdict(each) for each in done]
        if not problems:
            return
        layers = layer_numbers(self._checkpoint, plan, conversion.port.layer_count)
        possible = cures(self.asked, now, plan, suspects, layers)
        if self._attempts is not None and possible:
            self._attempts.failed(attempt, possible[0])
        raise QualityError(self._refusal(problems, suspects, possible))

    def _suspects(self, folder: Path) -> tuple[Suspect, ...]:
        from torch2mlx.verification.blame import find_suspects

        conversion = self.conversion
        files = [folder / shard.file for shard in conversion.plan.shards]
        return find_suspects(
            conversion.checkpoint,
            conversion.plan.outputs,
            files,
            trust_remote_code=self.asked.trust_remote_code,
            progress=conversion.progress,
        )

    def _refusal(
        self, problems: list[str], suspects: tuple[Suspect, ...], possible: list[Cure]
    ) -> str:
        text = f"quantization costs too much: {' and '.join(problems)}; nothing was published."
        worst = [s.describe() for s in suspects[:3] if s.share > 0]
        if worst:
            text += f" Of the divergence, most comes from {', '.join(worst)}."
        count = len(self._attempts.done) if self._attempts else 0
        if not possible:
            tried = f" after {count + 1} attempts" if count else ""
            return f"{text} Nothing is left to try{tried}; leave the model unquantized"
        if self._attempts is not None:
            return f"{text} ({self._attempts.done[-1].cure}, attempt {count})"
        names = "; ".join(cure.text for cure in possible)
        return f"{text} The cheapest cure first: {names}. --auto tries them in turn"
