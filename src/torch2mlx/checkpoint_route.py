"""Convert a checkpoint through a port: one output, or several from one pass over the source.

The stages in their order: a port is chosen and proven, the outputs are planned, written, packaged
and verified, and published at the end.  Modules take `torch2mlx.compiler.route` instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.errors import (
    OptionError,
    PlanError,
    Torch2MLXError,
    UnsupportedError,
)
from torch2mlx.options import ConvertOptions
from torch2mlx.progress import Progress, Silent

if TYPE_CHECKING:
    from torch2mlx.conversion.identity import SourceState
    from torch2mlx.conversion.records import FileRecord
    from torch2mlx.conversion.team import Team
    from torch2mlx.evidence.memory import MemoryTrace
    from torch2mlx.evidence.reference import StoredRun
    from torch2mlx.packaging.index import WeightSummary
    from torch2mlx.packaging.manifest import Manifest
    from torch2mlx.packaging.sharing import SharedOutput, Writing
    from torch2mlx.packaging.staging import Staging
    from torch2mlx.planning.plan import Plan
    from torch2mlx.quantization.recipe import QuantOptions
    from torch2mlx.selection.fitting import Running
    from torch2mlx.selection.plan_file import PlannedConversion
    from torch2mlx.sources.base import Checkpoint
    from torch2mlx.verification.report import Comparison, ParityReport

__all__ = ["CheckpointConversion", "Conversion", "also_folder"]


@dataclass(frozen=True)
class Conversion:
    """What a conversion made.

    Attributes:
        destination: the published folder; its URL where that is remote.
        manifest: everything that `torch2mlx.json` in it says.
        also: further outputs of the same pass over the source.
    """

    destination: Path | str
    manifest: Manifest
    also: tuple[Conversion, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = {"destination": str(self.destination), **self.manifest.to_dict()}
        return plain | {"also": [o.to_dict() for o in self.also]} if self.also else plain


def also_folder(destination: Path, name: str) -> Path:
    """Where a further output goes: DST-8bit for `--also 8bit`."""
    return destination.with_name(f"{destination.name}-{name}")


class CheckpointConversion:
    """One output, stage by stage; the first of a run takes the further ones along."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        destination: Path,
        options: ConvertOptions,
        progress: Progress,
        order: PlannedConversion | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.destination = destination
        self.asked = self.options = options
        self.progress = progress
        self.measured: dict[str, float] = {}
        self.trace: MemoryTrace
        self.plan: Plan
        self.port: Any
        self.gate: Any = None
        self.notes: tuple[str, ...] = ()
        self.running: Running | None = None
        self.predicted: float | None = None
        self.judge: Callable[[ParityReport, Path], None] | None = None
        self.decisions: dict[str, Any] = {}
        self.order = order
        self.precision: dict[str, str] = {}
        self.further = [
            CheckpointConversion(checkpoint, also_folder(destination, name), other, progress)
            for name, other in options.further().items()
        ]

    def run(self) -> Conversion:
        from torch2mlx.conversion.team import find_team
        from torch2mlx.evidence.memory import MemoryTrace

        team = find_team()
        if not team.leads:
            self.progress = Silent()
        if team.size > 1 and self.options.tuned:
            raise OptionError(
                "--calibrate, --target-bpw, --fit and bounds on the quality run in one process; "
                "start torch2mlx by itself"
            )
        with team.stops_together(), MemoryTrace(self.progress) as trace:
            self.progress = self.trace = trace
            source = self._source_state()
            if not team.leads:
                return self._help(team, source)
            self._choose_port()
            for conversion in (self, *self.further):
                conversion.choose_precision()
            if self.options.tuned:
                from torch2mlx.tuning import Tuning

                tuning = Tuning(self, source.to_dict(self.checkpoint.folder))
                return tuning.run(lambda: self._lead(team, source))
            return self._lead(team, source)

    def _choose_port(self) -> None:
        """Take the first port that is proven, and plan all outputs for it."""
        from torch2mlx.routing import route

        self.checkpoint, twin, self.notes = route(
            self.checkpoint, self._prove, self.options.trust_remote_code
        )
        for text in (*self.notes, *self.plan.notes):
            self.progress.note(text)
        for other in self.further:
            other.prepare_like(self)
            if twin is not None:
                other.gate = other.new_gate()
                other.gate.comparisons.append(twin)

    def choose_precision(self) -> None:
        """Settle which modules of the result compute in which type."""
        from torch2mlx.precision import check_patterns, describe

        policy = self.options.precision_policy()
        if policy is None:
            from torch2mlx.verification.ranges import precision_of_ranges

            policy = precision_of_ranges(
                self.checkpoint,
                self.plan.outputs,
                self.port.module_paths,
                self.progress,
                self.options.trust_remote_code,
            )
            self.progress.note(
                f"--runtime-precision auto: {describe(policy)}"
                if policy
                else "--runtime-precision auto: no module needs another type"
            )
        self.precision = policy
        if policy:
            check_patterns(policy, self.port.module_paths)
            self.decisions["runtime_precision"] = policy
        if self.gate is not None:
            self.gate.precision = policy

    def _prove(self, checkpoint: Checkpoint) -> Comparison | None:
        """Plan, and prove the port on a twin; without a proof, none that is known to differ."""
        self._prepare(checkpoint)
        self.gate = self.new_gate()
        if self.gate is None:
            self._refuse_known_limits(checkpoint)
            return None
        with self.timed("verify"):
            twin: Comparison = self.gate.prove_port()
        return twin

    def _refuse_known_limits(self, checkpoint: Checkpoint) -> None:
        from torch2mlx.architectures.limits import stated_limits

        if checkpoint.kind == "mlx" or "model_file" in checkpoint.config:
            return
        if limits := stated_limits(checkpoint.config, self.options.max_context):
            raise UnsupportedError("; ".join(limits))

    def _prepare(self, checkpoint: Checkpoint) -> None:
        from torch2mlx.architectures.bounds import check_counts
        from torch2mlx.architectures.port import load_port

        self.checkpoint = checkpoint
        with self.timed("plan"), self.progress.stage("Planning from headers"):
            check_counts(checkpoint.config, checkpoint.state)
            self.port = load_port(checkpoint.config)
            self.plan = self.planned(self.options.quant_options())

    def prepare_like(self, first: CheckpointConversion) -> None:
        """Plan a further output of a checkpoint that `first` converts too."""
        self.checkpoint, self.progress, self.port = first.checkpoint, first.progress, first.port
        self.trace = first.trace
        self.notes = first.notes
        self.plan = self.planned(self.options.quant_options())

    def planned(self, quantize: QuantOptions | None) -> Plan:
        from torch2mlx.planning.plan import build_plan
        from torch2mlx.planning.shards import parse_size
        from torch2mlx.quantization.recipe import nothing_quantized

        options = self.options
        plan = build_plan(
            self.checkpoint,
            self.port,
            dtype=options.dtype,
            quantize=quantize,
            keep_grids=options.keep_grids,
            max_shard_size=parse_size(options.max_shard_size),
        )
        if quantize is not None and all(output.scheme is None for output in plan.outputs):
            raise nothing_quantized(plan.assignment)
        return plan

    def _lead(self, team: Team, source: SourceState) -> Conversion:
        from torch2mlx.packaging.sharing import write_shared

        if self.order is not None:
            self.order.check_bytes(self.plan.nbytes)
        with ExitStack() as stack:
            first = stack.enter_context(self._stage(source))
            made = {c: c.existing() for c in self.further if first.announced(c.destination)}
            todo = [self, *(c for c in self.further if made.get(c) is None)]
            stagings = [first, *(stack.enter_context(c._stage(source)) for c in todo[1:])]
            for conversion, staging in zip(todo, stagings, strict=True):
                staging.require_room(conversion.room)
            with self.timed("convert"):
                outputs = self._outputs(source, todo)
                write_shared(
                    team,
                    outputs,
                    stagings,
                    self.checkpoint.config,
                    self._writing(source),
                    self.progress,
                )
            manifests = [c._finish(s) for c, s in zip(todo, stagings, strict=True)]
            source.check(thorough=True)
            # The first is last: while it is missing, the same command puts right what is not.
            for conversion, staging, manifest in list(zip(todo, stagings, manifests, strict=True))[
                :0:-1
            ]:
                first.announce(staging.destination)
                made[conversion] = Conversion(staging.publish(), manifest)
            further = tuple(found for c in self.further if (found := made[c]) is not None)
            published = Conversion(first.publish(), manifests[0], further)
        team.tell("published", str(published.destination))
        return published

    def _stage(self, source: SourceState) -> Staging:
        from torch2mlx.packaging.staging import Staging

        return Staging(
            self.destination,
            identity=self._identity(source),
            restart=self.options.restart,
            wait=self.options.wait,
        )

    def existing(self) -> Conversion | None:
        """What an earlier run published, if it is there."""
        from torch2mlx.packaging.manifest import read_manifest

        if not self.destination.exists():
            return None
        return Conversion(self.destination.absolute(), read_manifest(self.destination))

    def _help(self, team: Team, source: SourceState) -> Conversion:
        """Make the files that the leading process deals out, then wait for its end."""
        from torch2mlx.architectures.port import load_port
        from torch2mlx.packaging.sharing import help_writing

        with suppress(Torch2MLXError):  # imports take seconds: meanwhile the first one plans
            load_port(self.checkpoint.config)
        dealt = team.hear("dealt")
        self._prepare(replace(self.checkpoint, config=dealt["config"]))
        for other in self.further:
            other.prepare_like(self)
        help_writing(team, dealt, self._outputs(source), self._writing(source))
        team.hear("published")
        return self._published()

    def _published(self) -> Conversion:
        from torch2mlx.packaging.manifest import read_manifest

        found = [
            Conversion(c.destination.absolute(), read_manifest(c.destination))
            for c in (self, *self.further)
        ]
        return Conversion(found[0].destination, found[0].manifest, tuple(found[1:]))

    def _finish(self, staging: Staging) -> Manifest:
        """Everything beside the weights, the proof of them, and the manifest."""
        from torch2mlx.packaging.port_folder import package_port

        with self.timed("package"):
            summary, tokenizer, notes = package_port(
                staging.folder,
                self.checkpoint,
                self.plan,
                self.port,
                self.precision,
                self.progress,
                self.options.trust_remote_code,
            )
        report, sources = None, None
        if self.gate is not None:
            files = [staging.folder / shard.file for shard in self.plan.shards]
            with self.timed("verify"), self._source_hashes() as hashes:
                report = self.gate.prove_result(staging.folder, files)
                sources = hashes.result()
            if self.predicted is not None:
                report = report.with_figure("quantization", "predicted_kl", self.predicted)
            if self.judge is not None:
                self.judge(report, staging.folder)
        notes = (*self.notes, *notes)
        return self._describe(staging, summary, tokenizer, report, sources, notes)

    @contextmanager
    def _source_hashes(self) -> Iterator[Future[dict[str, FileRecord]]]:
        """Hash the source meanwhile, for the certificate."""
        from torch2mlx.evidence.certificate import hash_sources
        from torch2mlx.packaging.manifest import source_files

        with ThreadPoolExecutor(1) as pool:
            yield pool.submit(hash_sources, source_files(self.checkpoint))

    @property
    def room(self) -> int:
        """Bytes of the output."""
        others = self.checkpoint.tokenizer_files.values()
        return self.plan.nbytes + sum(path.stat().st_size for path in others)

    def _source_state(self) -> SourceState:
        from torch2mlx.conversion.identity import SourceState

        config = self.checkpoint.folder / "config.json"
        return SourceState.take(p for p in (*self.checkpoint.source.files, config) if p.is_file())

    def _identity(self, source: SourceState) -> dict[str, Any]:
        from torch2mlx.conversion.identity import plan_identity
        from torch2mlx.packaging.manifest import library_versions

        return plan_identity(
            self.plan,
            source.to_dict(self.checkpoint.folder),
            self.options.to_dict(),
            library_versions(),
        )

    def _outputs(
        self, source: SourceState, conversions: Sequence[CheckpointConversion] | None = None
    ) -> list[SharedOutput]:
        """What is written, of all conversions of this run if none are named."""
        from torch2mlx.packaging.sharing import SharedOutput

        return [
            SharedOutput(c.destination, c.plan, c._identity(source))
            for c in (conversions or (self, *self.further))
        ]

    def _writing(self, source: SourceState) -> Writing:
        from torch2mlx.packaging.sharing import Writing
        from torch2mlx.planning.shards import parse_size

        return Writing(
            self.checkpoint.source,
            parse_size(self.options.memory_limit),
            source.check,
            self.options.verify,
        )

    def new_gate(self) -> Any:
        if not self.options.verify:
            return None
        from torch2mlx.planning.shards import parse_size
        from torch2mlx.verification.gate import Gate

        return Gate(
            self.checkpoint,
            self.port,
            self.plan.outputs,
            memory_limit=parse_size(self.options.memory_limit),
            max_context=self.options.max_context,
            trust_remote_code=self.options.trust_remote_code,
            progress=self.progress,
            loops=self.options.bounds.max_loops is not None,
            precision=self.precision,
        )

    def _describe(
        self,
        staging: Staging,
        summary: WeightSummary,
        tokenizer: dict[str, Any],
        report: ParityReport | None,
        sources: Mapping[str, FileRecord] | None,
        notes: Sequence[str],
    ) -> Manifest:
        from torch2mlx.conversion.memory import peak_resident
        from torch2mlx.evidence.certificate import write_certificate
        from torch2mlx.packaging.card import write_card
        from torch2mlx.packaging.manifest import build_manifest

        folder, plan, port = staging.folder, self.plan, self.port
        self.measured["peak_rss_bytes"] = peak_resident()
        limit = self.options.max_context
        if limit is not None and report is not None:
            notes = (*notes, f"compared with PyTorch on texts of up to {limit} tokens only")
        runs = self._record(folder, report)
        manifest = build_manifest(
            checkpoint=self.checkpoint,
            plan=plan,
            port_module=port.module,
            options=self.asked.to_dict(),
            summary=summary,
            folder=folder,
            parity=report.to_dict() if report else None,
            tokenizer=tokenizer,
            measured=self.measured,
            notes=(*plan.notes, *notes),
            known=staging.records(),
            decisions={**self.decisions, **self._memory(summary)},
            sources=sources,
        )
        manifest.write(folder)
        if report is not None:
            by = "PyTorch in float32 with the values of the written files, dequantized"
            write_certificate(folder, manifest, by, runs, "; ".join(report.skipped.values()))
        write_card(folder, manifest, self.checkpoint)
        return manifest

    def _memory(self, summary: WeightSummary) -> dict[str, Any]:
        """What the running model takes, with the weights as they were written."""
        if self.running is None:
            return {}
        memory = self.running.to_dict(summary.total_size)
        if memory["total"] > memory["limit"]:
            raise PlanError(
                f"{self.destination}: the written model takes {memory['total']:,} bytes, more than "
                f"--fit {self.options.fit} allows; nothing was published"
            )
        return {"memory": memory}

    def _record(self, folder: Path, report: ParityReport | None) -> list[StoredRun]:
        """Keep what the manifest has no room for, in files that the manifest lists."""
        from torch2mlx.evidence.record import build_evidence, write_evidence
        from torch2mlx.evidence.reference import store_tokens, write_arrays
        from torch2mlx.planning.shards import parse_size
        from torch2mlx.verification.details import Details

        memory = self.trace.record(parse_size(self.options.memory_limit))
        details = report.details if report is not None else Details()
        write_evidence(folder, build_evidence(details, self.plan.outputs, memory))
        runs = [store_tokens(details.reference)] if details.reference is not None else []
        write_arrays(folder, runs)
        return runs

    def timed(self, name: str) -> AbstractContextManager[None]:
        from torch2mlx.evidence.timing import timed

        return timed(self.measured, name)
