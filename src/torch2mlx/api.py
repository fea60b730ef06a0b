"""The public functions: inspect, convert, verify, generate.

Each is a short path through the stages: sources → planning → conversion → packaging →
verification; what a stage does is in its own package.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.errors import (
    DestinationError,
    OptionError,
    SourceError,
    Torch2MLXError,
    UnsupportedError,
)
from torch2mlx.inspection import Inspection, inspect_checkpoint
from torch2mlx.options import ConvertOptions
from torch2mlx.progress import Progress, Silent

if TYPE_CHECKING:
    import torch

    from torch2mlx.compiler.route import Compiled, Example
    from torch2mlx.conversion.executor import Target
    from torch2mlx.conversion.identity import SourceState
    from torch2mlx.conversion.team import Team
    from torch2mlx.diagnosis import Examination
    from torch2mlx.packaging.index import WeightSummary
    from torch2mlx.packaging.manifest import Manifest
    from torch2mlx.packaging.staging import Staging
    from torch2mlx.planning.plan import Plan
    from torch2mlx.quantization.recipe import QuantOptions
    from torch2mlx.selection import Selection
    from torch2mlx.sources.base import Checkpoint
    from torch2mlx.verification.report import Comparison, ParityReport

__all__ = [
    "Conversion",
    "Generation",
    "Verification",
    "convert",
    "doctor",
    "generate",
    "inspect",
    "plan",
    "upload",
    "verify",
]


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


@dataclass(frozen=True)
class Verification:
    """How an MLX folder compares with its PyTorch source.

    Attributes:
        folder: the MLX folder.
        report: the gate's findings.
        tokenizer: the tokenizer check, as plain values.
    """

    folder: Path
    report: ParityReport
    tokenizer: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        """Weights, outputs and tokenizer equal the source's."""
        return self.report.passed and bool(self.tokenizer.get("passed"))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "folder": str(self.folder),
            "passed": self.passed,
            "parity": self.report.to_dict(),
            "tokenizer": dict(self.tokenizer),
        }


@dataclass(frozen=True)
class Generation:
    """Generated text and what it cost.

    Attributes:
        text: the answer.
        prompt_tokens, generated_tokens: their numbers.
        prompt_tps, generation_tps: tokens a second in each phase.
        peak_memory: bytes that MLX held at most.
        finish_reason: "stop" or "length".
    """

    text: str
    prompt_tokens: int
    generated_tokens: int
    prompt_tps: float
    generation_tps: float
    peak_memory: int
    finish_reason: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dict(vars(self))


def inspect(
    source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> Inspection:
    """Say what a checkpoint is and what could go wrong, from headers and small files alone.

    Args:
        source: a folder, a checkpoint file, a hub id or a URL.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: count the checkpoint's Python files as usable.

    Raises:
        SourceError: there is no readable checkpoint.
    """
    from torch2mlx.sources import open_checkpoint

    checkpoint = open_checkpoint(source, revision=revision, trust_remote_code=trust_remote_code)
    with closing(checkpoint.source):
        return inspect_checkpoint(checkpoint)


def plan(
    source: str | Path,
    *,
    fit: str | int | None = None,
    context: int | None = None,
    memory_limit: str | int = "1GB",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Selection:
    """Compare ways to convert a checkpoint, from headers alone: size, memory, quality, machines.

    Args:
        source: a folder, a checkpoint file, a hub id or a URL.
        fit: memory that the model may take while it runs, such as "16GB".
        context: tokens of the longest text; None: what the config says, at most 8192.
        memory_limit: of the conversion.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: count the checkpoint's Python files as usable.

    Raises:
        Torch2MLXError: the checkpoint cannot be read, or no port takes it.
    """
    from torch2mlx.architectures.bounds import check_counts
    from torch2mlx.architectures.port import load_port
    from torch2mlx.selection import select_strategies

    checkpoint = _open(source, revision, trust_remote_code)
    with closing(checkpoint.source):
        check_counts(checkpoint.config, checkpoint.state)
        return select_strategies(
            checkpoint,
            load_port(checkpoint.config),
            fit=fit,
            context=context,
            memory_limit=memory_limit,
        )


def convert(
    source: str | Path | torch.nn.Module | torch.export.ExportedProgram,
    destination: str | Path = "mlx_model",
    *,
    example_inputs: Sequence[Any] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    example: str | Path | None = None,
    dynamic: Sequence[str] = (),
    entry_points: Mapping[str, Any] | Sequence[str] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Conversion | Compiled:
    """Convert a model to MLX, prove that it equals PyTorch, and publish the folder.

    Nothing appears at the destination until everything is written and proven.  Checkpoints of
    language models become mlx-lm's models; a module becomes MLX code of its own.

    Args:
        source: a folder, a checkpoint file (.safetensors, .bin, .pt, .pth, .gguf), a hub id or
            a URL such as s3://bucket/folder; or an `nn.Module`, an `ExportedProgram`, a .pt2 file
            or "package.module:factory".
        destination: folder to create; it must not exist.  At a URL (s3://bucket/folder,
            hf://owner/name) it is made in the working directory, then uploaded and removed.
        example_inputs: of a module: positional arguments of its `forward`.
        example_kwargs: of a module: keyword arguments.
        dynamic_shapes: of a module: as for `torch.export.export`; other extents are fixed.
        example: a file with the arguments, written by `torch.save`, in place of values.
        dynamic: "argument:axis=name" texts in place of `dynamic_shapes`.
        entry_points: of a module: method → its arguments (a tuple, a dict of keyword arguments or
            a tensor), in place of an example of `forward`; `dynamic_shapes` is then by method.
        progress: listener, such as `torch2mlx.reporting.terminal.Bars()`.
        **options: fields of `torch2mlx.options.ConvertOptions`.

    Raises:
        Torch2MLXError: one of `torch2mlx.errors`, with a message for the user.
    """
    from torch2mlx.compiler.route import Example
    from torch2mlx.sources.remote.urls import is_url

    try:
        asked = ConvertOptions(**options)
    except TypeError as error:
        raise TypeError(f"convert(): {error}") from None
    asked.check()
    listener = progress or Silent()
    examples = Example(
        example_inputs, example_kwargs, dynamic_shapes, example, tuple(dynamic), entry_points
    )
    if is_url(str(destination)):
        return _convert_and_upload(source, str(destination), asked, examples, listener)
    return _convert(source, destination, asked, examples, listener)


def _convert(
    source: str | Path | torch.nn.Module | torch.export.ExportedProgram,
    destination: str | Path,
    asked: ConvertOptions,
    examples: Example,
    listener: Progress,
) -> Conversion | Compiled:
    from torch2mlx.compiler.route import convert_program, is_program
    from torch2mlx.packaging.staging import check_destination
    from torch2mlx.sources.remote.urls import shown

    check_destination(destination)
    if is_program(source):
        compiled = convert_program(source, destination, asked, examples, listener)
        for note in compiled.notes:
            listener.note(note)
        return compiled
    name = shown(str(source))
    if examples.given:
        raise OptionError(
            f"{name}: a checkpoint takes no example; to compile a module, name what builds it: "
            "package.module:factory"
        )
    if asked.weights is not None:
        raise OptionError(f"{name}: is a checkpoint itself; --weights belongs to a module")
    assert isinstance(source, str | Path)
    checkpoint = _open(source, asked.revision, asked.trust_remote_code, asked.keep_download)
    with closing(checkpoint.source):
        for one in (asked, *asked.further().values()):
            one.check_source(checkpoint.kind, checkpoint.location)
        return _Conversion(checkpoint, Path(destination), asked, listener).run()


def _convert_and_upload(
    source: Any, destination: str, asked: ConvertOptions, examples: Example, listener: Progress
) -> Conversion | Compiled:
    """Make the folder here, as always; upload it once it is verified, then remove it."""
    from torch2mlx.conversion.team import find_team
    from torch2mlx.packaging.remote import RemoteDestination

    if asked.also:
        raise OptionError("--also: a remote DST takes one output; run the command once for each")
    remote = RemoteDestination(destination)
    finished = remote.local.exists()
    if find_team().leads:
        remote.require_new(begun=finished)
    result = (
        _made_before(remote.local, source, asked)
        if finished
        else _convert(source, remote.local, asked, examples, listener)
    )
    if find_team().leads:
        total = sum(path.stat().st_size for path in remote.local.rglob("*"))
        with listener.stage("Uploading", total) as advance:
            remote.upload(remote.local, advance)
        shutil.rmtree(remote.local)
    return replace(result, destination=remote.url)


def _made_before(folder: Path, source: Any, asked: ConvertOptions) -> Conversion:
    """The folder of a run that was stopped while it uploaded, if it is what is asked for."""
    from torch2mlx.packaging.manifest import read_manifest
    from torch2mlx.sources.remote.urls import HUB, shown

    manifest = read_manifest(folder)
    location = shown(str(source)).removeprefix(HUB)
    options = json.loads(json.dumps(asked.to_dict(), default=str))
    if manifest.source.location != location or dict(manifest.options) != options:
        raise DestinationError(
            f"{folder}: waits to be uploaded there since an earlier run, but comes from another "
            "source or other options; remove it"
        )
    return Conversion(folder, manifest)


def _open(
    source: str | Path, revision: str | None, trust_remote_code: bool, keep_download: bool = False
) -> Checkpoint:
    from torch2mlx.architectures.port import load_port
    from torch2mlx.routing import may_generate
    from torch2mlx.sources import open_checkpoint

    def accept(config: dict[str, Any]) -> None:  # before gigabytes are downloaded
        try:
            load_port(config)
        except UnsupportedError:
            if not may_generate(config):
                raise

    return open_checkpoint(
        source,
        revision=revision,
        trust_remote_code=trust_remote_code,
        accept_config=accept,
        keep_download=keep_download,
    )


def also_folder(destination: Path, name: str) -> Path:
    """Where a further output goes: DST-8bit for `--also 8bit`."""
    return destination.with_name(f"{destination.name}-{name}")


class _Conversion:
    """One output, stage by stage; the first of a run takes the further ones along."""

    def __init__(
        self, checkpoint: Checkpoint, destination: Path, options: ConvertOptions, progress: Progress
    ) -> None:
        self.checkpoint = checkpoint
        self.destination = destination
        self.options = options
        self.progress = progress
        self.measured: dict[str, float] = {}
        self.plan: Plan
        self.port: Any
        self.gate: Any = None
        self.notes: tuple[str, ...] = ()
        self.further = [
            _Conversion(checkpoint, also_folder(destination, name), other, progress)
            for name, other in options.further().items()
        ]

    def run(self) -> Conversion:
        from torch2mlx.conversion.team import find_team

        team = find_team()
        if not team.leads:
            self.progress = Silent()
        if team.size > 1 and (self.options.calibrate or self.options.target_bpw is not None):
            raise OptionError(
                "--calibrate and --target-bpw run in one process; start torch2mlx by itself"
            )
        with team.stops_together():
            source = self._source_state()
            if not team.leads:
                return self._help(team, source)
            self._choose_port()
            if self.options.target_bpw is not None:
                with self._timed("allocate"):
                    self._allocate(self.options.target_bpw)
            if self.options.calibrate:
                with self._timed("calibrate"):
                    self._calibrate()
            return self._lead(team, source)

    def _choose_port(self) -> None:
        """Take the first port that is proven, and plan all outputs for it."""
        from torch2mlx.routing import route

        self.checkpoint, twin, self.notes = route(self.checkpoint, self._prove)
        for text in (*self.notes, *self.plan.notes):
            self.progress.note(text)
        for other in self.further:
            other.prepare_like(self)
            if twin is not None:
                other.gate = other._gate()
                other.gate.comparisons.append(twin)

    def _prove(self, checkpoint: Checkpoint) -> Comparison | None:
        """Plan, and prove the port on a twin."""
        self._prepare(checkpoint)
        self.gate = self._gate()
        if self.gate is None:
            return None
        with self._timed("verify"):
            twin: Comparison = self.gate.prove_port()
        return twin

    def _prepare(self, checkpoint: Checkpoint) -> None:
        from torch2mlx.architectures.bounds import check_counts
        from torch2mlx.architectures.port import load_port

        self.checkpoint = checkpoint
        with self._timed("plan"), self.progress.stage("Planning from headers"):
            check_counts(checkpoint.config, checkpoint.state)
            self.port = load_port(checkpoint.config)
            self.plan = self._planned(self.options.quant_options())

    def prepare_like(self, first: _Conversion) -> None:
        """Plan a further output of a checkpoint that `first` converts too."""
        self.checkpoint, self.progress, self.port = first.checkpoint, first.progress, first.port
        self.notes = first.notes
        self.plan = self._planned(self.options.quant_options())

    def _planned(self, quantize: QuantOptions | None) -> Plan:
        from torch2mlx.planning.plan import build_plan
        from torch2mlx.planning.shards import parse_size

        options = self.options
        return build_plan(
            self.checkpoint,
            self.port,
            dtype=options.dtype,
            quantize=quantize,
            keep_grids=options.keep_grids,
            max_shard_size=parse_size(options.max_shard_size),
        )

    def _lead(self, team: Team, source: SourceState) -> Conversion:
        with ExitStack() as stack:
            first = stack.enter_context(self._stage(source))
            made = {c: c.existing() for c in self.further if first.announced(c.destination)}
            todo = [self, *(c for c in self.further if made.get(c) is None)]
            stagings = [first, *(stack.enter_context(c._stage(source)) for c in todo[1:])]
            for conversion, staging in zip(todo, stagings, strict=True):
                staging.require_room(conversion.room)
            with self._timed("convert"):
                self._write(team, todo, stagings, source)
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
        if self.options.calibrate:
            from torch2mlx.calibration.conversion import calibration_folder

            shutil.rmtree(calibration_folder(self.destination), ignore_errors=True)
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
        from torch2mlx.conversion.executor import Target
        from torch2mlx.conversion.identity import differences, same_work
        from torch2mlx.conversion.journal import Journal
        from torch2mlx.packaging.lock import work_folder
        from torch2mlx.packaging.staging import check_destination

        dealt = team.hear("dealt")
        self._prepare(replace(self.checkpoint, config=dealt["config"]))
        for other in self.further:
            other.prepare_like(self)
        with ExitStack() as stack:
            targets = []
            for conversion in (self, *self.further):
                own = conversion._identity(source)
                share = dealt["outputs"].get(conversion.destination.name)
                if share is None:  # published by an earlier run
                    continue
                if not same_work(share["identity"], own):
                    raise DestinationError(
                        f"process {team.rank} does not see what process 0 sees: "
                        f"{'; '.join(differences(share['identity'], own))}"
                    )
                work = work_folder(check_destination(conversion.destination))
                journal = Journal(work, own, rank=team.rank)
                stack.callback(journal.close)
                mine = frozenset(f for f, rank in share["files"].items() if rank == team.rank)
                targets.append(Target(conversion.plan, work / "output", journal, mine))
            self._execute(team, targets, source, lambda _: None)
        team.tell(f"written/{team.rank}", True)
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
        summary, tokenizer, notes = self._package(staging.folder)
        report = None
        if self.gate is not None:
            files = [staging.folder / shard.file for shard in self.plan.shards]
            with self._timed("verify"):
                report = self.gate.prove_result(staging.folder, files)
            self._require_quality(report)
        return self._describe(staging, summary, tokenizer, report, (*self.notes, *notes))

    def _require_quality(self, report: ParityReport) -> None:
        from torch2mlx.verification.quality import require_quality

        options = self.options
        cures = []
        if not options.calibrate:
            cures.append("--calibrate, at the same size")
        elif not options.distill:
            cures.append("--distill, at the same size")
        if options.target_bpw is None:
            size = self.plan.bits_per_weight
            cures.append(f"--target-bpw {size + 0.25:.2f}, more bits where they count most")
        cures.append("more bits for all, such as --q-bits 8")
        require_quality(report, options.max_kl, options.min_top1, cures)

    @property
    def room(self) -> int:
        """Bytes of the output."""
        return self.plan.nbytes + sum(p.stat().st_size for p in self._companions().values())

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

    def _gate(self) -> Any:
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
        )

    def _allocate(self, target: float) -> None:
        """Give the plan bits by module, those that the user named aside."""
        from torch2mlx.calibration.conversion import allocate_bits

        options = self.options
        asked = options.quant_options()
        assert asked is not None
        with self.progress.stage("Measuring what each module's bits are worth"):
            found = allocate_bits(
                self.checkpoint,
                self.plan.outputs,
                asked.base,
                target,
                texts=options.calibration_text,
                max_context=options.max_context,
                trust_remote_code=options.trust_remote_code,
            )
        counts = Counter(found.bits.values())
        note = (
            f"{target:g} bits per weight: "
            + ", ".join(f"{counts[bits]} modules at {bits} bits" for bits in sorted(counts))
            + f"; predicted KL divergence, rounded to nearest: {found.divergence:.3g}"
        )
        self.progress.note(note)
        chosen = replace(asked, overrides=(*found.bits.items(), *asked.overrides))
        plan = self._planned(chosen)
        self.plan = replace(plan, notes=(*plan.notes, note))
        if self.gate is not None:
            self.gate.outputs = self.plan.outputs

    def _calibrate(self) -> None:
        """Give the plan calibrated tensors, which the checkpoint's reader then knows too."""
        from torch2mlx.calibration.conversion import calibrate_outputs

        options = self.options
        found = calibrate_outputs(
            self.checkpoint,
            self.plan.outputs,
            self.destination,
            texts=options.calibration_text,
            tokens=options.calibration_tokens,
            distill=options.distill,
            max_context=options.max_context,
            trust_remote_code=options.trust_remote_code,
            progress=self.progress,
        )
        for note in found.notes:
            self.progress.note(note)
        self.checkpoint = replace(self.checkpoint, source=found.source)
        notes = (*self.plan.notes, *found.notes)
        self.plan = replace(self.plan, outputs=found.outputs, notes=notes)
        if self.gate is not None:
            self.gate.checkpoint, self.gate.outputs = self.checkpoint, self.plan.outputs

    def _companions(self) -> Mapping[str, Path]:
        return self.checkpoint.tokenizer_files

    def _write(
        self,
        team: Team,
        conversions: Sequence[_Conversion],
        stagings: Sequence[Staging],
        source: SourceState,
    ) -> None:
        from torch2mlx.conversion.executor import Target
        from torch2mlx.conversion.team import deal_out

        missing = [
            (staging, shard)
            for c, staging in zip(conversions, stagings, strict=True)
            for shard in c.plan.shards
            if shard.file not in staging.records()
        ]
        ranks = deal_out([shard for _, shard in missing], team.size)
        dealt: dict[Staging, dict[str, int]] = {staging: {} for staging in stagings}
        for (staging, shard), rank in zip(missing, ranks, strict=True):
            dealt[staging][shard.file] = rank
        team.tell(
            "dealt",
            {
                "config": self.checkpoint.config,
                "outputs": {
                    c.destination.name: {"identity": c._identity(source), "files": dealt[staging]}
                    for c, staging in zip(conversions, stagings, strict=True)
                },
            },
        )
        targets = [
            Target(
                c.plan,
                staging.folder,
                staging.journal,
                frozenset(f for f, rank in dealt[staging].items() if rank == team.rank),
            )
            for c, staging in zip(conversions, stagings, strict=True)
        ]
        total = sum(c.plan.nbytes for c in conversions)
        done = total - sum(shard.nbytes for _, shard in missing)
        with self.progress.stage("Converting", total) as advance:
            if done:
                count = sum(len(c.plan.shards) for c in conversions)
                self.progress.note(
                    f"going on: {count - len(missing)} of {count} weight files are finished"
                )
                advance(done)
            self._execute(team, targets, source, advance)
            team.hear_all("written")
        for staging in stagings:
            assert staging.journal is not None
            staging.journal.join()

    def _execute(
        self,
        team: Team,
        targets: Sequence[Target],
        source: SourceState,
        advance: Callable[[int], None],
    ) -> None:
        from torch2mlx.conversion import executor
        from torch2mlx.planning.shards import parse_size

        def progress(count: int) -> None:
            team.check()
            advance(count)

        executor.execute_together(
            targets,
            self.checkpoint.source,
            memory_limit=parse_size(self.options.memory_limit),
            progress=progress,
            check=source.check,
            processes=team.local_size,
        )

    def _package(self, folder: Path) -> tuple[WeightSummary, dict[str, Any], tuple[str, ...]]:
        from torch2mlx.packaging.config import (
            output_config,
            write_config,
            write_generation_config,
        )
        from torch2mlx.packaging.index import leaf_paths, write_index
        from torch2mlx.packaging.stopping import find_stop_ids
        from torch2mlx.packaging.tokenizer import (
            check_tokenizer,
            copy_tokenizer_files,
            has_tokenizer,
            load_tokenizer,
        )

        checkpoint, options, plan, port = self.checkpoint, self.options, self.plan, self.port
        with self._timed("package"), self.progress.stage("Copying and checking the tokenizer"):
            notes = list(copy_tokenizer_files(self._companions(), folder))
            tokenizer: Any = None
            if has_tokenizer(folder):
                try:
                    tokenizer = load_tokenizer(folder, options.trust_remote_code)
                except SourceError:  # the tokenizer's own check reports it
                    tokenizer = None
            stops = find_stop_ids(
                checkpoint.config,
                checkpoint.generation_config,
                tokenizer,
                None if port.model_file else port.module,
            )
            notes.extend(stops.notes)
            written = output_config(
                port.config,
                plan.quantization,
                eos_token_id=stops.ids,
                dtype=plan.dtype.torch_name if plan.dtype else None,
            )
            if port.model_file:
                written["model_file"] = port.module
                (folder / port.module).write_text(port.model_file, encoding="utf-8")
            write_config(folder, written)
            if write_generation_config(folder, checkpoint.generation_config, stops.ids):
                notes.append("generation_config.json: eos_token_id united with the other sources'")
            summary = write_index(
                folder,
                {o.module: o.scheme.bits for o in plan.outputs if o.scheme is not None},
                leaf_paths(port.build()),
            )
            report = check_tokenizer(
                checkpoint.tokenizer_source,
                folder,
                options.trust_remote_code,
                _embedding_rows(plan),
            )
            report.require()
        for warning in (*report.warnings, *notes):
            self.progress.note(warning)
        return summary, report.to_dict(), tuple(notes)

    def _describe(
        self,
        staging: Staging,
        summary: WeightSummary,
        tokenizer: dict[str, Any],
        report: ParityReport | None,
        notes: Sequence[str],
    ) -> Manifest:
        from torch2mlx.packaging.card import write_card
        from torch2mlx.packaging.manifest import build_manifest

        folder, plan, port = staging.folder, self.plan, self.port
        self.measured["peak_rss_bytes"] = _peak_rss()
        limit = self.options.max_context
        if limit is not None and report is not None:
            notes = (*notes, f"compared with PyTorch on texts of up to {limit} tokens only")
        manifest = build_manifest(
            checkpoint=self.checkpoint,
            plan=plan,
            port_module=port.module,
            options=self.options.to_dict(),
            summary=summary,
            folder=folder,
            parity=report.to_dict() if report else None,
            tokenizer=tokenizer,
            measured=self.measured,
            notes=(*plan.notes, *notes),
            known=staging.records(),
        )
        manifest.write(folder)
        write_card(folder, manifest, self.checkpoint)
        return manifest

    def _timed(self, name: str) -> _Timer:
        return _Timer(self.measured, name)


class _Timer:
    """Adds wall and CPU seconds of a block to a dict."""

    def __init__(self, into: dict[str, float], name: str) -> None:
        self.into = into
        self.name = name

    def __enter__(self) -> None:
        self.start = (time.perf_counter(), time.process_time())

    def __exit__(self, *_: object) -> None:
        wall, cpu = time.perf_counter() - self.start[0], time.process_time() - self.start[1]
        for key, value in ((f"{self.name}_wall_s", wall), (f"{self.name}_cpu_s", cpu)):
            self.into[key] = round(self.into.get(key, 0.0) + value, 3)


def _peak_rss() -> int:
    """Bytes of memory that this process held at most (kilobytes on Linux, bytes on macOS)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _embedding_rows(plan: Plan) -> int | None:
    from torch2mlx.planning.plan import is_token_embedding

    return next((o.expr.shape[0] for o in plan.outputs if is_token_embedding(o.name)), None)


def verify(
    source: str | Path,
    folder: str | Path,
    *,
    memory_limit: str | int = "1GB",
    max_context: int | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Compare an MLX folder, from this or any other tool, with its PyTorch source.

    Args:
        source: the PyTorch checkpoint.
        folder: the MLX folder.
        memory_limit: memory beside one block of the model.
        max_context: check only so many tokens.
        trust_remote_code: allow the checkpoint's own code on the PyTorch side.
        revision: branch, tag or commit of a hub id.
        progress: listener.

    Raises:
        Torch2MLXError: source or folder cannot be read, or hold different models.
    """
    from torch2mlx.verification.folder import verify_folder

    checkpoint = _open(source, revision, trust_remote_code)
    with closing(checkpoint.source):
        report, tokenizer = verify_folder(
            checkpoint,
            Path(folder),
            memory_limit=memory_limit,
            max_context=max_context,
            trust_remote_code=trust_remote_code,
            progress=progress or Silent(),
        )
    return Verification(Path(folder), report, tokenizer)


def doctor(folder: str | Path | None = None, *, fix: bool = False) -> Examination:
    """Look for known faults of an MLX folder, whoever made it, or of this machine.

    Args:
        folder: an MLX folder; None: this machine.
        fix: mend what can be mended without the original.

    Raises:
        SourceError: there is no such folder.
        OptionError: nothing of a machine can be mended.
    """
    from torch2mlx.diagnosis import examine_folder, examine_machine

    if folder is None:
        if fix:
            raise OptionError("--fix mends a folder: torch2mlx doctor DST --fix")
        return examine_machine()
    return examine_folder(Path(folder), fix=fix)


def generate(
    folder: str | Path,
    prompt: str,
    *,
    max_tokens: int = 100,
    temperature: float = 0.0,
    seed: int = 0,
    raw: bool = False,
    trust_remote_code: bool = False,
    on_text: Callable[[str], None] | None = None,
) -> Generation:
    """Generate text with a converted model, through mlx-lm.

    Args:
        folder: an MLX folder.
        prompt: the user's message; with `raw`, the text itself.
        max_tokens: longest answer.
        temperature: 0 takes the most likely token.
        seed: of the sampling.
        raw: do not apply the chat template.
        trust_remote_code: allow a model file or tokenizer code in the folder to run.  A model
            file that torch2mlx writes for this config.json needs no permission.
        on_text: called with each piece of text as it comes.

    Raises:
        OptionError: the prompt is empty, no token is allowed, or a negative temperature.
        SourceError: the folder is no MLX language model with a tokenizer.
    """
    if max_tokens < 1:
        raise OptionError(f"--max-tokens {max_tokens}: at least 1 token")
    if temperature < 0:
        raise OptionError(f"--temp {temperature}: at least 0, which is greedy")
    if not (Path(folder) / "config.json").exists():
        raise SourceError(f"{folder}: no MLX model here (config.json is missing)")
    import mlx.core as mx
    from mlx_lm import load, stream_generate
    from mlx_lm.sample_utils import make_sampler
    from mlx_lm.utils import load_model, load_tokenizer

    try:
        tokenizer_config = {"trust_remote_code": trust_remote_code}
        generated = None if trust_remote_code else _generated_port(Path(folder))
        if generated is None:
            model, tokenizer = load(
                str(folder), tokenizer_config=tokenizer_config, trust_remote_code=trust_remote_code
            )[:2]
        else:
            model, config = load_model(
                Path(folder),
                model_config={"model_file": None},
                get_model_classes=lambda config: generated.classes,
            )
            stops = config.get("eos_token_id")
            tokenizer = load_tokenizer(  # type: ignore[no-untyped-call]
                Path(folder), tokenizer_config, eos_token_ids=stops
            )
    except Torch2MLXError:
        raise
    except Exception as error:  # whatever a damaged folder provokes in two libraries
        raise SourceError(f"{folder}: mlx-lm cannot load it: {error}") from error
    if mx.default_device() == mx.cpu:
        # MLX's CPU kernels for half types are up to sixty times slower than for float32; the
        # values stay the same.
        from torch2mlx.verification.candidate import to_float32

        to_float32(model)
    mx.random.seed(seed)
    text: Any = prompt
    if not raw and tokenizer.chat_template is not None:
        render: Any = tokenizer.apply_chat_template
        text = render([{"role": "user", "content": prompt}], add_generation_prompt=True)
    if not text and not tokenizer.encode(text):
        raise OptionError("the prompt is empty; give at least one token of text")
    parts, last = [], None
    for last in stream_generate(
        model,
        tokenizer,
        prompt=text,
        max_tokens=max_tokens,
        sampler=make_sampler(temp=temperature),
    ):
        parts.append(last.text)
        if on_text is not None:
            on_text(last.text)
    if last is None:
        raise SourceError(f"{folder}: nothing was generated; is the prompt empty?")
    return Generation(
        text="".join(parts),
        prompt_tokens=last.prompt_tokens,
        generated_tokens=last.generation_tokens,
        prompt_tps=last.prompt_tps,
        generation_tps=last.generation_tps,
        peak_memory=int(last.peak_memory * 1e9),
        finish_reason=last.finish_reason,
    )


def _generated_port(folder: Path) -> Any:
    """The port that torch2mlx generates for a folder's config.json, if the folder holds just that.

    The folder's own file is only read, never run: a hash beside it would prove nothing of a
    folder from elsewhere.
    """
    from torch2mlx.architectures.port import MODEL_FILE, load_port
    from torch2mlx.sources.local_files import read_json_object

    config = read_json_object(folder / "config.json")
    if config.get("model_file") != MODEL_FILE:
        return None
    port = load_port(config)
    if not port.is_source((folder / MODEL_FILE).read_text(encoding="utf-8")):
        raise SourceError(
            f"{folder / MODEL_FILE}: not what this version of torch2mlx and transformers writes "
            "for config.json; read it, and run it with --trust-remote-code if you trust it"
        )
    return port


def upload(folder: str | Path, repository: str) -> str:
    """Upload a converted folder to the Hugging Face hub, as it is.

    Args:
        folder: what `convert` published.
        repository: "owner/name"; it is created where it does not exist.

    Returns:
        the address of the repository.

    Raises:
        DestinationError: no access, no network, or a name that the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    from torch2mlx.sources.remote.files import is_network_error

    hub = HfApi()
    try:
        address = hub.create_repo(repo_id=repository, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder)
    except Exception as error:
        if not isinstance(error, HFValidationError) and not is_network_error(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise DestinationError(
            f"{folder} is converted, but cannot be uploaded to {repository}: {reason}; log in with "
            "`hf auth login` and upload the folder with `hf upload`"
        ) from error
    return str(address)
