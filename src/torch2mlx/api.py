"""The public functions, from `inspect` to `upload`.

Each is a short path through the stages: sources → planning → conversion → packaging →
verification; what a stage does is in its own package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.checkpoint_route import Conversion
from torch2mlx.destinations import convert_and_upload, convert_here
from torch2mlx.errors import OptionError
from torch2mlx.generation import Generation, generate_text
from torch2mlx.inspection import Inspection, inspect_checkpoint
from torch2mlx.loading import load_language_model
from torch2mlx.options import ConvertOptions
from torch2mlx.progress import Progress, Silent
from torch2mlx.routing import open_convertible

if TYPE_CHECKING:
    import torch

    from torch2mlx.benchmarking import Benchmark
    from torch2mlx.compiler.formats import Format
    from torch2mlx.compiler.route import Compiled
    from torch2mlx.compiler.verification import ProgramVerification
    from torch2mlx.diagnosis import Examination
    from torch2mlx.evidence.recheck import CertificateCheck
    from torch2mlx.evidence.upload import Upload
    from torch2mlx.reporting.report import Report
    from torch2mlx.selection import Selection
    from torch2mlx.verification.report import ParityReport

__all__ = [
    "Conversion",
    "Generation",
    "Verification",
    "bench",
    "convert",
    "doctor",
    "generate",
    "inspect",
    "load",
    "plan",
    "report",
    "upload",
    "verify",
    "verify_certificate",
]


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


def inspect(
    source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> Inspection:
    """Say what a checkpoint is and what could go wrong, from headers and small files alone.

    Args:
        source: a folder, a checkpoint file, a hub id or a URL.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: count the checkpoint's Python files as usable.

    Raises:
        SourceError: there is no readable checkpoint, or a program that only running it with an
            example could tell of.
    """
    from torch2mlx.compiler.route import format_of
    from torch2mlx.sources import open_checkpoint

    known = format_of(source)
    if known is None:
        opened = open_checkpoint(source, revision=revision, trust_remote_code=trust_remote_code)
    else:
        _refuse_options(source, known, {"--revision": revision})
        opened = known.answer(known.headers, source)(Path(source).expanduser())
    with closing(opened.source):
        return inspect_checkpoint(opened, None if known is None else known.name)


def _refuse_options(source: str | Path, known: Format, given: Mapping[str, Any]) -> None:
    """Raise OptionError for options of language models."""
    named = [name for name, value in given.items() if value]
    if named:
        raise OptionError(
            f"{source}: {known.name}: {', '.join(named)} belong to checkpoints of language models; "
            "leave them out"
        )


def plan(
    source: str | Path,
    *,
    fit: str | int | None = None,
    context: int | None = None,
    memory_limit: str | int = "1GB",
    quality: bool = False,
    strategy: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Selection:
    """Compare ways to convert a checkpoint: size, memory, quality, machines.

    Headers alone are read, unless `quality` is asked for.  What `convert` compiles (speech models,
    encoder-decoders, pipelines) is compiled for it, and nothing is written.

    Args:
        source: a folder, a checkpoint file, a hub id or a URL.
        fit: memory that the model may take while it runs, such as "16GB".
        context: tokens of the longest text; None: what the config says, at most 8192.
        memory_limit: of the conversion.
        quality: also predict what each way costs this model, which reads and runs its layers.
        strategy: name of the way that the result's JSON orders, for `convert(plan=...)`; None:
            the one that is recommended.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: count the checkpoint's Python files as usable.

    Raises:
        Torch2MLXError: the checkpoint cannot be read, or no port takes it.
    """
    from torch2mlx.architectures.bounds import check_counts
    from torch2mlx.architectures.port import load_port
    from torch2mlx.compiler.hub import compiled_snapshot
    from torch2mlx.compiler.route import format_of
    from torch2mlx.selection import select_strategies

    snapshot = compiled_snapshot(source, revision)
    if snapshot is not None:
        source, revision = snapshot, None
    known = format_of(source)
    if known is not None:
        from torch2mlx.selection.programs import select_for_program

        asked = {"--context": context, "--quality": quality, "--strategy": strategy}
        _refuse_options(source, known, {**asked, "--revision": revision})
        return select_for_program(
            known, Path(source).expanduser(), fit=fit, memory_limit=memory_limit
        )
    checkpoint = open_convertible(source, revision, trust_remote_code)
    with closing(checkpoint.source):
        check_counts(checkpoint.config, checkpoint.state)
        return select_strategies(
            checkpoint,
            load_port(checkpoint.config),
            fit=fit,
            context=context,
            memory_limit=memory_limit,
            quality=quality,
            strategy=strategy,
            revision=revision,
            trust_remote_code=trust_remote_code,
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
    plan: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Conversion | Compiled:
    """Convert a model to MLX, prove that it equals PyTorch, and publish the folder.

    Nothing appears at the destination until everything is written and proven.  Checkpoints of
    language models become mlx-lm's models; a module becomes MLX code of its own.

    Args:
        source: a folder, a checkpoint file (.safetensors, .bin, .pt, .pth, .ckpt, .gguf), a hub id
            or a URL such as s3://bucket/folder; or an `nn.Module`, an `ExportedProgram`, a .pt2
            file or "package.module:factory".
        destination: folder to create; it must not exist.  At a URL (s3://bucket/folder,
            hf://owner/name) it is made in the working directory, then uploaded and removed.
        example_inputs: of a module: positional arguments of its `forward`.
        example_kwargs: of a module: keyword arguments.
        dynamic_shapes: of a module: as for `torch.export.export`; other extents are fixed.
        example: a file with the arguments, written by `torch.save`, in place of values.
        dynamic: "argument:axis=name" texts in place of `dynamic_shapes`.
        entry_points: of a module: method → its arguments (a tuple, a dict of keyword arguments or
            a tensor), in place of an example of `forward`; `dynamic_shapes` is then by method.
        plan: a file with the JSON of `plan`, of which exactly that is carried out; options that it
            decides are then refused, and so are a changed source and an edited file.
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
    order = None
    if plan is not None:
        from torch2mlx.selection.plan_file import read_plan

        order = read_plan(plan)
        if str(source) != order.location:
            raise OptionError(f"--plan {plan}: is a plan for {order.location}, not for {source}")
        asked = order.apply(asked)
    listener = progress or Silent()
    examples = Example(
        example_inputs, example_kwargs, dynamic_shapes, example, tuple(dynamic), entry_points
    )
    if is_url(str(destination)):
        return convert_and_upload(source, str(destination), asked, examples, listener, order)
    place = Path(destination).expanduser()
    return convert_here(source, place, asked, examples, listener, order)


def verify(
    source: str | Path,
    folder: str | Path,
    *,
    adapter: str | Path | None = None,
    expert_layout: str | None = None,
    text_only: bool = False,
    memory_limit: str | int = "1GB",
    max_context: int | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Verification | ProgramVerification:
    """Compare an MLX folder, from this or any other tool, with its PyTorch source.

    Args:
        source: the PyTorch checkpoint.
        folder: the MLX folder.
        adapter: folder of an adapter that was merged into it.
        expert_layout: how the checkpoint holds fused experts, as for `convert`.
        text_only: the folder holds the language model of a multimodal checkpoint.
        memory_limit: memory beside one block of the model.
        max_context: check only so many tokens.
        trust_remote_code: allow the checkpoint's own code on the PyTorch side.
        revision: branch, tag or commit of a hub id.
        progress: listener.

    Returns:
        of what `convert` compiles, a `torch2mlx.compiler.verification.ProgramVerification`: the
        source is compiled again, the folder's code and settings are compared with that, its
        tensors with the source's and its outputs with PyTorch's.

    Raises:
        Torch2MLXError: source or folder cannot be read, or hold different models.
    """
    from torch2mlx.compiler.hub import compiled_snapshot
    from torch2mlx.compiler.route import format_of, verify_program
    from torch2mlx.verification.folder import verify_folder

    snapshot = compiled_snapshot(source, revision)
    if snapshot is not None:
        source, revision = snapshot, None
    known = format_of(source)
    if known is not None:
        asked: dict[str, Any] = {
            "--text-only": text_only,
            "--max-context": max_context,
            "--revision": revision,
        }
        asked |= {"--adapter": adapter, "--expert-layout": expert_layout}
        _refuse_options(source, known, asked)
        return verify_program(
            Path(source).expanduser(),
            Path(folder).expanduser(),
            known,
            memory_limit=memory_limit,
            trust_remote_code=trust_remote_code,
            progress=progress or Silent(),
        )
    checkpoint = open_convertible(
        source,
        revision,
        trust_remote_code,
        adapter=adapter,
        expert_layout=expert_layout,
        text_only=text_only,
    )
    with closing(checkpoint.source):
        report, tokenizer = verify_folder(
            checkpoint,
            Path(folder).expanduser(),
            memory_limit=memory_limit,
            max_context=max_context,
            trust_remote_code=trust_remote_code,
            progress=progress or Silent(),
        )
    return Verification(Path(folder), report, tokenizer)


def verify_certificate(folder: str | Path, *, trust_remote_code: bool = False) -> CertificateCheck:
    """Check a converted folder against its certificate, without its source and without PyTorch.

    Args:
        folder: what `convert` published, on any machine.
        trust_remote_code: allow code in the folder (model.py) to run.

    Raises:
        SourceError: no certificate, a damaged or edited one, or code that may not run.
    """
    from torch2mlx.evidence.recheck import check_certificate

    return check_certificate(Path(folder).expanduser(), trust_remote_code)


def report(*folders: str | Path, benchmark: str | Path | None = None) -> Report:
    """What one converted folder says of itself, or several beside one another.

    Args:
        *folders: what `convert` published.
        benchmark: a file of `torch2mlx bench --json`, for a single folder.

    Returns:
        the report; its methods `html`, `markdown` and `to_dict` give its forms.

    Raises:
        OptionError: no folder, or a benchmark for several.
        SourceError: torch2mlx did not make a folder, or a file in it is damaged.
    """
    from torch2mlx.reporting.report import make_report

    return make_report([Path(folder).expanduser() for folder in folders], benchmark)


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
    return examine_folder(Path(folder).expanduser(), fix=fix)


def load(folder: str | Path, *, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Load a converted model in MLX, each module in the type that it is to compute in.

    Args:
        folder: an MLX folder; the types are `runtime_precision` in its config.json.
        trust_remote_code: allow a model file or tokenizer code in the folder to run.  A model
            file that torch2mlx writes for this config.json needs no permission.

    Returns:
        the model and its tokenizer, as mlx_lm.load gives them.

    Raises:
        SourceError: the folder is no MLX language model with a tokenizer.
        OptionError: a type or pattern in config.json that does not fit the model.
    """
    return load_language_model(
        Path(folder).expanduser(), trust_remote_code=trust_remote_code, as_stored=True
    )


def generate(
    folder: str | Path,
    prompt: str = "",
    *,
    sound: str | Path | None = None,
    language: str | None = None,
    task: str | None = None,
    max_tokens: int = 100,
    temperature: float = 0.0,
    seed: int = 0,
    raw: bool = False,
    trust_remote_code: bool = False,
    on_text: Callable[[str], None] | None = None,
) -> Generation:
    """Generate text with a converted model: through mlx-lm, or an encoder-decoder by itself.

    Args:
        folder: an MLX folder.
        prompt: the user's message; with `raw`, the text itself.
        sound: in place of a prompt, for a model that takes sound: .wav, or features in .npy.
        language: that is spoken in the sound, as "de" or "german"; None: the model listens.
        task: "transcribe" or "translate" (to English); None: the model's own choice.
        max_tokens: longest answer.
        temperature: 0 takes the most likely token.
        seed: of the sampling.
        raw: do not apply the chat template.
        trust_remote_code: allow a model file or tokenizer code in the folder to run.  A model
            file that torch2mlx writes for this config.json needs no permission.
        on_text: called with each piece of text as it comes.

    Raises:
        OptionError: the prompt is empty, no token is allowed, a negative temperature, a text
            that is too long for the model, or a language or task that it does not know.
        SourceError: the folder is no MLX language model with a tokenizer.
    """
    return generate_text(
        Path(folder).expanduser(),
        prompt,
        sound=None if sound is None else Path(sound),
        language=language,
        task=task,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        raw=raw,
        trust_remote_code=trust_remote_code,
        on_text=on_text,
    )


def bench(
    folders: Sequence[str | Path],
    *,
    torch: str | Path | None = None,
    prompts: str | Path | Sequence[str] | None = None,
    max_tokens: int = 64,
    repeats: int = 5,
    compile: bool = False,  # noqa: A002  as the command calls it
    sizes: Sequence[str] = (),
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Benchmark:
    """Measure MLX folders, and their original in PyTorch, each in a process of its own.

    Args:
        folders: of language models, or of compiled modules.
        torch: the original; None: MLX alone.
        prompts: texts, or a file with one a line; None: two of torch2mlx's own.
        max_tokens: to generate for each prompt.
        repeats: measured passes, after one that warms up.
        compile: rows of torch.compile beside eager PyTorch's.
        sizes: "batch=4" texts, extents of a module's open axes; others are 8.
        trust_remote_code: allow code of the folders and of the checkpoint to run.
        progress: listener.

    Raises:
        OptionError: nothing that can be compared.
        SourceError: a folder or file cannot be read, or nothing could be measured.
    """
    from torch2mlx.benchmarking import BenchmarkOptions, run_benchmark
    from torch2mlx.benchmarking.run import PROMPTS, parse_sizes, read_prompts

    texts = PROMPTS if prompts is None else prompts
    options = BenchmarkOptions(
        torch=None if torch is None else str(torch),
        prompts=read_prompts(texts) if isinstance(texts, str | Path) else tuple(texts),
        max_tokens=max_tokens,
        repeats=repeats,
        compile=compile,
        sizes=parse_sizes(sizes),
        trust_remote_code=trust_remote_code,
    )
    return run_benchmark([Path(folder).expanduser() for folder in folders], options, progress)


def upload(
    folder: str | Path, repository: str, *, private: bool = False, dry_run: bool = False
) -> Upload:
    """Upload a converted folder to the Hugging Face hub, if it is still what was proven.

    Args:
        folder: what `convert` published.
        repository: "owner/name"; it is created where it does not exist.
        private: create it for oneself.
        dry_run: say what would be uploaded, and upload nothing.

    Raises:
        OptionError: no name that the hub takes.
        SourceError: torch2mlx did not make the folder, or its files are not those that were
            recorded and certified.
        DestinationError: no access, no network, or a name that the hub refuses.
    """
    from torch2mlx.evidence.upload import plan_upload, upload_folder

    act = plan_upload if dry_run else upload_folder
    return act(Path(folder).expanduser(), repository, private)
