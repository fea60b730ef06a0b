"""The folder of a generated model: code, weights, config, manifest, and the proof."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from torch2mlx.compiler.codegen import GeneratedModel
from torch2mlx.compiler.codegen.tree import method_name
from torch2mlx.compiler.entry_points import CompiledEntry, read_more_arguments
from torch2mlx.compiler.host import Host
from torch2mlx.compiler.loading import with_loader
from torch2mlx.compiler.parity import (
    Agreement,
    call_model,
    check_calls,
    check_parity,
    import_model,
    run_calls,
    run_original,
    stored_cases,
    stored_examples,
)
from torch2mlx.compiler.quantize import KERNELS, Quantized, assign, check_quantized
from torch2mlx.compiler.weights import WeightState, plan_weights, values_digest, weight_expressions
from torch2mlx.conversion.executor import execute
from torch2mlx.conversion.identity import SourceState, plan_identity
from torch2mlx.conversion.memory import available_bytes
from torch2mlx.conversion.records import FileRecord
from torch2mlx.errors import OptionError, ParityError
from torch2mlx.evidence.certificate import hash_sources, write_certificate
from torch2mlx.evidence.memory import MemoryTrace
from torch2mlx.evidence.record import build_evidence, write_evidence
from torch2mlx.evidence.reference import StoredRun, within_room, write_arrays
from torch2mlx.options import ConvertOptions
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
from torch2mlx.planning.plan import Plan
from torch2mlx.planning.regions import full
from torch2mlx.planning.shards import parse_size
from torch2mlx.progress import Progress
from torch2mlx.verification.audit import audit
from torch2mlx.verification.audit_report import AuditReport
from torch2mlx.verification.details import Details
from torch2mlx.verification.reference import to_torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

__all__ = ["CompiledModule", "publish", "weights_of"]

_FIXED = ", with the values of the example"

_ACTIVATIONS = 1.3  # memory of a comparison over its weights: activations, a tensor in transit


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


@dataclass(frozen=True)
class Extras:
    """What a folder has besides code and weights.

    Attributes:
        settings: further entries of config.json.
        files: to be copied byte for byte, by their name in the folder.
        host: what joins the methods of the model.
        notes: what a user should know.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    host: Host | None = None
    notes: tuple[str, ...] = ()


def publish(
    destination: str | Path,
    generated: GeneratedModel,
    entries: Sequence[CompiledEntry],
    weights: WeightState,
    module: torch.nn.Module,
    options: ConvertOptions,
    progress: Progress,
    seed: int = 0,
    extras: Extras | None = None,
) -> CompiledModule:
    """Write everything, compare with PyTorch, and give the folder its name.

    A run that was stopped left what it finished, and the next one with the same code, weights and
    options goes on there.

    Args:
        destination: folder to create.
        generated: code and list of weights.
        entries: each method, with its example.
        weights: values of the weights.
        module: the original, for the comparison; given the values of `weights` meanwhile if it
            has none.
        options: dtype, quantization, shards, memory, verification.
        progress: listener.
        seed: of the fresh inputs.
        extras: what the folder has besides.

    Raises:
        NumericError: NaN, Inf or overflow in a parameter.
        OptionError: options that do not fit the model.
        ParityError: an output or a tensor differs; nothing is published.
    """
    with MemoryTrace(progress) as trace:
        made = _Publication(generated, entries, weights, module, options, trace, extras or Extras())
        return made.run(destination, seed)


class _Publication:
    def __init__(
        self,
        generated: GeneratedModel,
        entries: Sequence[CompiledEntry],
        weights: WeightState,
        module: torch.nn.Module,
        options: ConvertOptions,
        progress: MemoryTrace,
        extras: Extras,
    ) -> None:
        self.extras = extras
        self.generated, self.entries, self.weights = generated, entries, weights
        self.module, self.options, self.progress = module, options, progress
        self.runs: list[StoredRun] = []
        self.limits = ""
        self.reader = weights.source
        self.source = SourceState.take(weights.source.files)
        self.measured: dict[str, float] = {}
        self.folder: Path

    def run(self, destination: str | Path, seed: int) -> CompiledModule:
        plan = self._plan()
        self._require_memory(plan)
        if not self.options.calibrate:
            return self._publish(destination, plan, seed)
        from torch2mlx.calibration.conversion import calibration_folder
        from torch2mlx.packaging.lock import Lock

        folder = calibration_folder(Path(destination))
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = Lock(folder, wait=self.options.wait)
        lock.acquire()
        try:
            made = self._publish(destination, self._calibrated(plan, folder), seed)
            lock.remove_folder()
            return made
        finally:
            lock.release()

    def _calibrated(self, plan: Plan, folder: Path) -> Plan:
        """The plan with calibrated tensors, which the reader then knows too."""
        from torch2mlx.calibration.modules import calibrate_module

        points = [entry.point for entry in self.entries]
        calls = [*points, *read_more_arguments(points, self.options.calibration_text)]
        identity = {"code": hashlib.sha256(self.generated.source.encode()).hexdigest()}
        identity |= {k: str(v) for k, v in self._values().items()}
        with (
            self._timed("calibrate"),
            self.progress.stage(f"Calibrating with {len(calls)} inputs"),
            self._original() as module,
        ):
            found = calibrate_module(
                module, plan.outputs, self.weights.source, calls, folder / "layers", identity
            )
        for note in found.notes:
            self.progress.note(note)
        self.reader = found.source
        return replace(plan, outputs=found.outputs, notes=(*plan.notes, *found.notes))

    def _publish(self, destination: str | Path, plan: Plan, seed: int) -> CompiledModule:
        sharded, quantized = len(plan.shards) > 1, plan.assignment is not None
        generated = self.generated
        code = with_loader(
            generated.source, generated.class_name, sharded=sharded, quantized=quantized
        )
        with Staging(
            destination,
            identity=self._identity(plan, code),
            restart=self.options.restart,
            wait=self.options.wait,
        ) as staging:
            self.folder = staging.folder
            staging.require_room(plan.nbytes)
            _write(self.folder / "model.py", code)
            _write(self.folder / "config.json", json.dumps(self._config(plan), indent=2) + "\n")
            copy_tokenizer_files(self.extras.files, self.folder)
            return self._fill(staging, plan, seed)

    def _fill(self, staging: Staging, plan: Plan, seed: int) -> CompiledModule:
        files = self._write_weights(staging, plan)
        schemes = {o.module: o.scheme for o in plan.outputs if o.scheme is not None}
        summary = write_index(self.folder, {path: s.bits for path, s in schemes.items()})
        agreement, proof, done, sources = None, None, None, {}
        if self.options.verify:
            with self._timed("verify"), self.progress.stage("Comparing with PyTorch"):
                sources = hash_sources({path.name: path for path in self.weights.source.files})
                proof = self._audit(plan, files)
                agreement, done = self._compare(plan, seed)
        elif plan.assignment is not None:
            done = Quantized(plan.assignment, None)
        _write(self.folder / "README.md", self._readme(agreement, done))
        self._record(plan, agreement, proof)
        manifest = self._manifest(plan, summary, agreement, proof, staging.records(), sources)
        if agreement is not None:
            write_certificate(self.folder, manifest, _reference(done), self.runs, self.limits)
        self.source.check(thorough=True)
        operators = sum(len(entry.graph.nodes) for entry in self.entries)
        name = self.generated.class_name
        return CompiledModule(staging.publish(), name, operators, agreement, done, manifest)

    def _write_weights(self, staging: Staging, plan: Plan) -> list[Path]:
        finished = staging.records()
        with self._timed("convert"), self.progress.stage("Writing weights", plan.nbytes) as advance:
            done = [shard for shard in plan.shards if shard.file in finished]
            if done:
                self.progress.note(
                    f"going on: {len(done)} of {len(plan.shards)} weight files are finished"
                )
                advance(sum(shard.nbytes for shard in done))
            return execute(
                plan,
                self.reader,
                staging.folder,
                memory_limit=parse_size(self.options.memory_limit),
                progress=advance,
                journal=staging.journal,
                check=self.source.check,
            )

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

    def _plan(self) -> Plan:
        weights = {w.name: w for entry in self.entries for w in entry.graph.weights}
        stored = self.generated.weights
        quantize = self.options.quant_options()
        expressions = weight_expressions(self.generated, weights, self.weights.tensors)
        assignment = None
        if quantize is not None:
            with TemporaryDirectory() as scratch:
                _write(Path(scratch) / "model.py", self.generated.source)
                classes = import_model(Path(scratch))
            model = getattr(classes, self.generated.class_name)()
            dtypes = Counter(e.dtype for e in expressions.values() if e.dtype.floating)
            assignment = assign(model, quantize, *(dtype for dtype, _ in dtypes.most_common(1)))
        kinds = {name: weights[s.source].kind for name, s in stored.items()}
        return plan_weights(
            expressions,
            assignment=assignment,
            unchecked={name for name, kind in kinds.items() if kind != "parameter"},
            max_shard_size=parse_size(self.options.max_shard_size),
            notes=(*self.weights.notes, *_fixed(self.entries), *self.extras.notes),
        )

    def _record(self, plan: Plan, agreement: Agreement | None, proof: AuditReport | None) -> None:
        """Keep what the manifest has no room for, in files that the manifest lists."""
        details = Details(proof.checks if proof is not None else ())
        memory = self.progress.record(parse_size(self.options.memory_limit))
        compared = agreement.outputs if agreement is not None else ()
        write_evidence(self.folder, build_evidence(details, plan.outputs, memory, compared))
        write_arrays(self.folder, self.runs)

    def _audit(self, plan: Plan, files: Sequence[Path]) -> AuditReport:
        """Every written tensor against its source; ParityError for one that differs."""
        report = audit(plan.outputs, files, self.reader)
        failure = report.first_failure
        if failure is not None:
            raise ParityError(f"audit: {failure.detail}; nothing was written")
        return report

    def _compare(self, plan: Plan, seed: int) -> tuple[Agreement, Quantized | None]:
        """Both models on the same inputs, unquantized; then what quantization changed.

        Weights that PyTorch reads from files are gone before MLX has its own.
        """
        folder, name = self.folder, self.generated.class_name
        with self._original() as module:
            cases = run_original(self.entries, module, seed)
        host = self.extras.host
        whole = run_calls(host) if host is not None else []
        if plan.assignment is None:
            model = import_model(folder).load(str(folder))
            agreement = check_parity(model, self.generated, cases, self._original)
            runs = stored_cases(cases, self.generated, agreement)
            if host is not None:
                checked = check_calls(model, host, whole, agreement.limit, len(runs))
                agreement, runs = agreement.joined(checked.agreement), [*runs, *checked.runs]
            self._keep(runs)
            return agreement, None
        model = self._unquantized(plan)
        before = self._examples(model)
        agreement = check_parity(model, self.generated, cases, self._original)
        if host is not None:
            checked = check_calls(model, host, whole, agreement.limit, len(cases))
            agreement = agreement.joined(checked.agreement)
        del model
        done = check_quantized(folder, name, plan.assignment, before, self._examples)
        self._keep(stored_examples(cases, self.generated, done.exact, KERNELS))
        return agreement, done

    def _keep(self, runs: Sequence[StoredRun]) -> None:
        changes = any(entry.graph.states for entry in self.entries)
        self.runs, self.limits = within_room(runs, in_order=changes)

    @contextmanager
    def _original(self) -> Iterator[torch.nn.Module]:
        with weights_of(self.module, self.weights):
            yield self.module

    def _require_memory(self, plan: Plan) -> None:
        """OptionError where the comparison would not fit into memory."""
        if not self.options.verify:
            return
        ours = sum(output.expr.nbytes for output in plan.outputs)
        theirs = 0
        if self.weights.source.files:
            tensors = {id(t): t for t in self.module.state_dict(keep_vars=True).values()}
            theirs = sum(t.numel() * t.element_size() for t in tensors.values())
        needed, available = int(_ACTIVATIONS * max(ours, theirs)), available_bytes()
        if available is not None and needed > available:
            raise OptionError(
                f"{self.generated.class_name}: the comparison with PyTorch needs about "
                f"{needed / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB are available; "
                "free memory, use a machine that has more, or leave the comparison out with "
                "--no-verify"
            )

    def _unquantized(self, plan: Plan) -> Any:
        from torch2mlx.dtypes import to_mx

        model = getattr(import_model(self.folder), self.generated.class_name)()
        values = []
        for output in plan.outputs:
            bits = output.expr.read(full(output.expr.shape), self.weights.source)
            values.append((output.name, to_mx(bits, output.expr.dtype)))
        model.load_weights(values)
        model.eval()
        return model

    def _examples(self, model: Any) -> list[Any]:
        """Outputs of a model on the example of every method; buffers stay as they are."""
        import mlx.core as mx
        from mlx.utils import tree_flatten

        before = tree_flatten(model.parameters())
        outputs = []
        for entry in self.entries:
            arguments = self.generated.methods[entry.method]
            outputs += call_model(
                model, entry.method, arguments, entry.point.args, entry.point.kwargs
            )
        mx.eval(outputs)  # what is not computed yet would keep the weights
        model.load_weights(before)
        return outputs

    def _config(self, plan: Plan) -> dict[str, Any]:
        config: dict[str, Any] = {
            "model_class": self.generated.class_name,
            **self.extras.settings,
        }
        if len(self.entries) == 1:
            config["inputs"] = _inputs(self.entries[0])
        else:
            config["methods"] = {method_name(e.method): _inputs(e) for e in self.entries}
        if plan.quantization is not None:
            config["quantization"] = dict(plan.quantization)
        return config

    def _manifest(
        self,
        plan: Plan,
        summary: WeightSummary,
        agreement: Agreement | None,
        proof: AuditReport | None,
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
                "audit": proof.to_dict() if proof is not None else None,
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

    def _readme(self, agreement: Agreement | None, quantized: Quantized | None) -> str:
        generated = self.generated
        host = self.extras.host
        calls = [f"outputs = model({', '.join(host.arguments)})"] if host is not None else []
        for method, arguments in generated.methods.items():
            call = "" if method == "forward" else f".{method_name(method)}"
            calls.append(f"outputs = model{call}({', '.join(a.name for a in arguments)})")
        shapes = [
            f"- `{i.name}`: {i.type}" + (_FIXED if i.name in e.graph.frozen else "")
            for e in self.entries
            for i in e.graph.inputs
        ]
        text = "Not compared with PyTorch (`--no-verify`).\n"
        if agreement is not None:
            text = (
                f"Compared with PyTorch on: {'; '.join(agreement.cases)}. Largest relative L2 "
                f"error\n{agreement.worst:.1e}, limit {agreement.limit:.0e}.\n"
            )
        if quantized is not None:
            moved = ""
            if quantized.drift is not None:
                moved = f", which moves the outputs by {quantized.drift:.1e} on the example"
            text += f"\nThen quantized to {quantized.assignment.base}{moved}.\n"
        newline = "\n"
        return f"""# {generated.class_name} for MLX

```python
from model import load

model = load(".")
{newline.join(calls)}
```

Inputs:
{newline.join(dict.fromkeys(shapes))}

{text}"""

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.measured[f"{name}_wall_s"] = round(time.perf_counter() - start, 3)


@contextmanager
def weights_of(module: torch.nn.Module, weights: WeightState) -> Iterator[None]:
    """While it lasts, the module holds the values of `weights`, in its own dtypes.

    A module that holds them anyway is left alone.
    """
    import torch

    if not weights.source.files:
        yield
        return
    replaced = []
    made: dict[int, torch.Tensor] = {}
    for path, inner in module.named_modules():
        for held in (inner._parameters, inner._buffers):
            for name, tensor in held.items():
                expr = weights.tensors.get(f"{path}.{name}" if path else name)
                if tensor is None or expr is None:
                    continue
                replaced.append((held, name, tensor))
                if id(tensor) not in made:
                    bits = expr.read(full(expr.shape), weights.source)
                    value = to_torch(bits, expr.dtype).to(tensor.dtype)
                    if isinstance(tensor, torch.nn.Parameter):
                        value = torch.nn.Parameter(value, requires_grad=False)
                    made[id(tensor)] = value
    for held, name, tensor in replaced:
        held[name] = made[id(tensor)]
    try:
        yield
    finally:
        for held, name, tensor in replaced:
            held[name] = tensor


def _reference(quantized: Quantized | None) -> str:
    """Who computed what a certificate compares with."""
    if quantized is None:
        return "PyTorch"
    moved = "" if quantized.drift is None else f", which is {quantized.drift:.1e} from PyTorch"
    return f"MLX with the stored numbers in ordinary layers{moved}"


def _inputs(entry: CompiledEntry) -> list[dict[str, Any]]:
    return [
        {
            "name": i.name,
            "dtype": str(i.type.dtype).removeprefix("torch."),
            "shape": [n if type(n) is int else repr(n) for n in i.type.shape],
            **({"fixed": True} if i.name in entry.graph.frozen else {}),
        }
        for i in entry.graph.inputs
    ]


def _fixed(entries: Sequence[CompiledEntry]) -> list[str]:
    """What a user should know of values that the code was made for."""
    notes = []
    for entry in entries:
        names, checks = entry.graph.frozen, entry.graph.expectations
        if names:
            notes.append(
                f"{', '.join(names)}: fixed, sizes follow from the values; calls with other values "
                "than the example's are refused"
            )
        others = list(dict.fromkeys(e.what for e in checks if e.what not in names))
        if others:
            notes.append(f"checked on every call, as in the example: {'; '.join(others)}")
    return notes


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
