"""The parity gate: nothing is published that does not equal the PyTorch original.

Three proofs, each in bounded memory.  *twin*: a tiny random model with the same flags runs equal
at every length, before any weight moves.  *audit*: every written tensor holds what its source
says.  *blocks*: real weights give the same numbers in PyTorch and MLX, both in float32.  What
rounding and quantization then cost is measured apart from that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch2mlx.architectures.limits import known_limits
from torch2mlx.architectures.port import Port
from torch2mlx.errors import ParityError
from torch2mlx.packaging.files import MANIFEST
from torch2mlx.planning.expressions import sources_of
from torch2mlx.planning.plan import Output, is_output_head, is_token_embedding
from torch2mlx.progress import Progress
from torch2mlx.sources.base import Checkpoint
from torch2mlx.verification.audit import audit, check_tied
from torch2mlx.verification.audit_report import AuditReport, TensorCheck
from torch2mlx.verification.blocks import run_blocks
from torch2mlx.verification.budgets import Figures, measure_budgets
from torch2mlx.verification.details import Details
from torch2mlx.verification.precise import measure_precision
from torch2mlx.verification.report import Budget, Comparison, ParityReport, require
from torch2mlx.verification.twin import run_twin

__all__ = ["Gate"]


class Gate:
    """The checks of one conversion or of one existing folder.

    Args:
        checkpoint: the PyTorch source.
        port: for its config.
        outputs: what each written parameter must hold.
        memory_limit: bytes beside one block of the model.
        max_context: longest sequence to prove; None for all.
        trust_remote_code: allow the checkpoint's own code on the PyTorch side.
        progress: listener.
        converting: the folder is being written; False: it exists already.  Errors advise on it.
        loops: count texts that end in a loop, too.
        precision: types that modules of the result compute in.
        published: SHA-256 of the weight files, by name, of a folder whose quantized values were
            chosen on data; None: they were rounded to nearest, or `outputs` holds them.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        port: Port,
        outputs: Sequence[Output],
        *,
        memory_limit: int,
        max_context: int | None,
        trust_remote_code: bool,
        progress: Progress,
        converting: bool = True,
        loops: bool = False,
        precision: Mapping[str, str] | None = None,
        published: Mapping[str, str] | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.port = port
        self.outputs = outputs
        self.memory_limit = memory_limit
        self.max_context = max_context
        self.trust_remote_code = trust_remote_code
        self.progress = progress
        self.converting = converting
        self.loops = loops
        self.precision = precision
        self.published = published
        self.comparisons: list[Comparison] = []

    def prove_port(self) -> Comparison:
        """The twin; raises ParityError if the port is wrong for this config."""
        with self.progress.stage("Proving the port on a tiny twin"):
            twin = run_twin(
                self.checkpoint.config,
                max_context=self.max_context,
                folder=self.checkpoint.folder,
                trust_remote_code=self.trust_remote_code,
            )
        if not twin.passed and twin.agrees_up_to is None:
            # Where it agrees up to some length, its own note names the boundary.
            limits = known_limits(self.checkpoint.config)
            twin = replace(twin, notes=(*twin.notes, *limits))
        self.comparisons.append(twin)
        require(twin, self.converting)
        return twin

    def prove_result(self, folder: Path, files: Sequence[Path]) -> ParityReport:
        """Audit and blocks, then what the written dtypes and quantization cost.

        Args:
            folder: the written model, config and tokenizer included.
            files: its weight files.

        Raises:
            ParityError: a tensor or a layer differs; names the first.
        """
        audited = self._audit(files)
        if self.checkpoint.kind == "mlx":
            return ParityReport(
                comparisons=tuple(self.comparisons), audit=audited.to_dict(),
                skipped={"blocks": "the source is an MLX folder, which PyTorch does not load"},
                details=Details(audited.checks),
            )  # fmt: skip
        for comparison in self._blocks():
            self.comparisons.append(comparison)
            require(comparison, self.converting)
        with self.progress.stage("Measuring what dtype and quantization cost"):
            figures = measure_budgets(
                self.checkpoint,
                self.outputs,
                folder,
                files,
                self.comparisons,
                audited,
                memory_limit=self.memory_limit,
                trust_remote_code=self.trust_remote_code,
                loops=self.loops,
                precision=self.precision,
            )
        if figures.written is not None:
            self.comparisons.append(figures.written)
            require(figures.written, self.converting)
        return ParityReport(
            comparisons=tuple(self.comparisons),
            budgets=(*figures.budgets, *self._precision(folder, files, figures)),
            audit=audited.to_dict(),
            skipped=figures.skipped,
            details=replace(figures.details, checks=audited.checks),
        )

    def _precision(self, folder: Path, files: Sequence[Path], figures: Figures) -> Iterator[Budget]:
        """What the types cost that modules compute in; where the whole model fits."""
        if not self.precision or figures.written is None:
            return
        with self.progress.stage("Running the result in the types of its modules"):
            yield measure_precision(
                self.checkpoint,
                self.outputs,
                folder,
                files,
                self.precision,
                trust_remote_code=self.trust_remote_code,
            )

    def _audit(self, files: Sequence[Path]) -> AuditReport:
        total = sum(path.stat().st_size for path in files)
        with self.progress.stage("Auditing every tensor against its source", total) as advance:
            source, rounded = self.checkpoint.source, self.published is None
            report = audit(self.outputs, files, source, rounded=rounded, progress=advance)
            report = replace(report, checks=(*report.checks, *self._tied()))
        changed = [n for n, h in report.hashes.items() if (self.published or {}).get(n, h) != h]
        if changed:
            raise ParityError(
                f"audit: {changed[0]} is not the file that {MANIFEST} tells of. Its values were "
                "chosen on data, so nothing else tells what they should be; copy the folder "
                "again, or convert the source again"
            )
        report.require()
        return report

    def _tied(self) -> Iterator[TensorCheck]:
        """A head that the config ties away must equal the embedding that replaces it."""
        state = self.checkpoint.state
        head = next((n for n in state if is_output_head(n)), None)
        used = {id(leaf) for output in self.outputs for leaf in sources_of(output.expr)}
        if head is None or any(id(leaf) in used for leaf in sources_of(state[head])):
            return
        embedding = next((n for n in state if is_token_embedding(n)), None)
        if embedding is not None:
            yield check_tied(head, state[head], embedding, state[embedding], self.checkpoint.source)

    def _blocks(self) -> Sequence[Comparison]:
        checkpoint = self.checkpoint
        with self.progress.stage("Comparing real weights with PyTorch, layer by layer"):
            return run_blocks(
                checkpoint.config,
                checkpoint.state,
                checkpoint.source,
                memory_limit=self.memory_limit,
                folder=checkpoint.folder,
                trust_remote_code=self.trust_remote_code,
            )
