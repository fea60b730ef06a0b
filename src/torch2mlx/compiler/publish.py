"""The folder of a generated model: code, weights, config, manifest, and the proof."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch2mlx.compiler.documents import readme
from torch2mlx.compiler.entry_points import read_more_arguments
from torch2mlx.compiler.parity import Agreement
from torch2mlx.compiler.prepared import Prepared
from torch2mlx.compiler.proof import Proof
from torch2mlx.compiler.quantize import Quantized
from torch2mlx.compiler.weights import values_digest
from torch2mlx.conversion.identity import SourceState, plan_identity
from torch2mlx.conversion.records import FileRecord
from torch2mlx.evidence.certificate import hash_sources, write_certificate
from torch2mlx.evidence.memory import MemoryTrace
from torch2mlx.evidence.record import build_evidence, write_evidence
from torch2mlx.evidence.reference import write_arrays
from torch2mlx.evidence.timing import timed
from torch2mlx.packaging.files import output_records, source_record
from torch2mlx.packaging.index import WeightSummary, write_index
from torch2mlx.packaging.manifest import (
    Manifest,
    SourceRecord,
    library_versions,
    plan_record,
    weight_record,
)
from torch2mlx.packaging.staging import Staging
from torch2mlx.packaging.tokenizer import copy_tokenizer_files
from torch2mlx.packaging.weights import write_weights
from torch2mlx.planning.plan import Plan
from torch2mlx.planning.shards import parse_size
from torch2mlx.progress import Progress
from torch2mlx.verification.audit import audit
from torch2mlx.verification.audit_report import AuditReport
from torch2mlx.verification.details import Details

__all__ = ["CompiledModule", "publish"]


@dataclass(frozen=True)
class CompiledModule:
    """A published folder.

    Attributes:
        folder: where it is.
        class_name: of the root in its model.py.
        operators: number of ATen calls that were lowered.
        agreement: what was compared with PyTorch; None: nothing.
        quantized: what quantization did, or None.
        manifest: what torch2mlx.json says.
    """

    folder: Path
    class_name: str
    operators: int
    agreement: Agreement | None
    quantized: Quantized | None
    manifest: Manifest


def publish(
    destination: str | Path, prepared: Prepared, progress: Progress, seed: int = 0
) -> CompiledModule:
    """Write everything, compare with PyTorch, and give the folder its name.

    A run that was stopped left what it finished, and the next one with the same code, weights and
    options goes on there.

    Args:
        destination: folder to create.
        prepared: code, values, and what they are compared with.
        progress: listener.
        seed: of the fresh inputs.

    Raises:
        NumericError: NaN, Inf or overflow in a parameter.
        OptionError: options that do not fit the model.
        ParityError: an output or a tensor differs; nothing is published.
    """
    with MemoryTrace(progress) as trace:
        return _Publication(prepared, trace).run(destination, seed)


class _Publication:
    def __init__(self, prepared: Prepared, progress: MemoryTrace) -> None:
        self.prepared = prepared
        self.extras = prepared.extras
        self.generated, self.entries = prepared.generated, prepared.entries
        self.weights, self.options, self.progress = prepared.weights, prepared.options, progress
        self.sides = prepared.sides
        self.reader = self.weights.source
        self.source = SourceState.take(self.weights.source.files)
        self.measured: dict[str, float] = {}
        self.folder: Path

    def run(self, destination: str | Path, seed: int) -> CompiledModule:
        plan = self.prepared.plan(self.options)
        if self.options.verify:
            self.sides.require_memory(plan)
        if not self.options.calibrate:
            return self._publish(destination, plan, seed)
        from torch2mlx.calibration.conversion import calibration_work

        with calibration_work(Path(destination), self.options.wait) as folder:
            return self._publish(destination, self._calibrated(plan, folder), seed)

    def _calibrated(self, plan: Plan, folder: Path) -> Plan:
        """The plan with calibrated tensors, which the reader then knows too."""
        from torch2mlx.calibration.modules import calibrate_module

        points = [entry.point for entry in self.entries]
        calls = [*points, *read_more_arguments(points, self.options.calibration_text)]
        identity = {"code": hashlib.sha256(self.generated.source.encode()).hexdigest()}
        identity |= {k: str(v) for k, v in self._values().items()}
        with (
            timed(self.measured, "calibrate"),
            self.progress.stage(f"Calibrating with {len(calls)} inputs"),
            self.sides.original() as module,
        ):
            found = calibrate_module(
                module, plan.outputs, self.weights.source, calls, folder / "layers", identity
            )
        for note in found.notes:
            self.progress.note(note)
        self.reader = found.source
        return replace(plan, outputs=found.outputs, notes=(*plan.notes, *found.notes))

    def _publish(self, destination: str | Path, plan: Plan, seed: int) -> CompiledModule:
        code = self.prepared.code(plan)
        with Staging(
            destination,
            identity=self._identity(plan, code),
            restart=self.options.restart,
            wait=self.options.wait,
        ) as staging:
            self.folder = staging.folder
            staging.require_room(plan.nbytes)
            _write(self.folder / "model.py", code)
            _write(self.folder / "config.json", self.prepared.config(plan))
            copy_tokenizer_files(self.extras.files, self.folder)
            return self._fill(staging, plan, seed)

    def _fill(self, staging: Staging, plan: Plan, seed: int) -> CompiledModule:
        with timed(self.measured, "convert"):
            files = write_weights(
                plan,
                self.reader,
                staging,
                memory_limit=parse_size(self.options.memory_limit),
                progress=self.progress,
                check=self.source.check,
            )
        schemes = {o.module: o.scheme for o in plan.outputs if o.scheme is not None}
        summary = write_index(self.folder, {path: s.bits for path, s in schemes.items()})
        report, proof, sources = None, None, {}
        if self.options.verify:
            with timed(self.measured, "verify"), self.progress.stage("Comparing with PyTorch"):
                sources = hash_sources({path.name: path for path in self.weights.source.files})
                report = audit(plan.outputs, files, self.reader)
                report.require()
                proof = self.sides.compare(self.folder, plan, seed)
        agreement = proof.agreement if proof is not None else None
        done = proof.quantized if proof is not None else None
        if proof is None and plan.assignment is not None:
            done = Quantized(plan.assignment, None)
        text = readme(self.generated, self.entries, self.extras.host, agreement, done)
        _write(self.folder / "README.md", text)
        self._record(plan, proof, report)
        manifest = self._manifest(plan, summary, agreement, report, staging.records(), sources)
        if proof is not None:
            write_certificate(self.folder, manifest, proof.reference, proof.runs, proof.limits)
        self.source.check(thorough=True)
        operators = sum(len(entry.graph.nodes) for entry in self.entries)
        name = self.generated.class_name
        return CompiledModule(staging.publish(), name, operators, agreement, done, manifest)

    def _identity(self, plan: Plan, code: str) -> dict[str, Any]:
        """Everything that decides the bytes of the folder."""
        source = self._values()
        identity = plan_identity(plan, source, self.options.to_dict(), library_versions())
        return {**identity, "code": hashlib.sha256(code.encode()).hexdigest()}

    def _values(self) -> dict[str, Any]:
        """What the values are, in plain ones."""
        source: dict[str, Any] = self.source.to_dict(self.weights.folder)
        in_memory = values_digest(self.weights.source)
        if in_memory is not None:
            source["(values in memory)"] = in_memory
        return source

    def _record(self, plan: Plan, proof: Proof | None, report: AuditReport | None) -> None:
        """Keep what the manifest has no room for, in files that the manifest lists."""
        details = Details(report.checks if report is not None else ())
        memory = self.progress.record(parse_size(self.options.memory_limit))
        compared = proof.agreement.outputs if proof is not None else ()
        write_evidence(self.folder, build_evidence(details, plan.outputs, memory, compared))
        write_arrays(self.folder, proof.runs if proof is not None else ())

    def _manifest(
        self,
        plan: Plan,
        summary: WeightSummary,
        agreement: Agreement | None,
        report: AuditReport | None,
        written: Mapping[str, FileRecord],
        sources: Mapping[str, FileRecord],
    ) -> Manifest:
        weights = self.weights
        verification: dict[str, Any] = {"skipped": True}
        if agreement is not None:
            verification = {
                "passed": True,
                "cases": list(agreement.cases),
                "error": agreement.worst,
                "limit": agreement.limit,
                "audit": report.to_dict() if report is not None else None,
            }
        manifest = Manifest(
            source=SourceRecord(
                location=weights.location,
                kind=weights.kind,
                files={
                    path.name: sources.get(path.name) or source_record(path)
                    for path in weights.source.files
                },
            ),
            options=self.options.to_dict(),
            plan=plan_record(plan, "generated", plan.notes),
            weights=weight_record(summary),
            outputs=output_records(self.folder, written),
            verification=verification,
            measured=self.measured,
        )
        manifest.write(self.folder)
        return manifest


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
