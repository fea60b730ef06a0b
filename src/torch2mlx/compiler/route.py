"""From what a user has (a module, a factory's name, a file or folder) to a compiled folder.

Every kind of source has a row in `_FORMATS`, which all commands ask, or a branch by its class in
`_compile`; what becomes of it is in a module of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.audio.kokoro import is_kokoro, open_kokoro_headers
from torch2mlx.compiler.encoder_decoder.kinds import is_encoder_decoder_checkpoint
from torch2mlx.compiler.example import (
    Example,
    forward_arguments,
    read_entry_points,
    require_example,
)
from torch2mlx.compiler.exported_file import is_exported_file, load_exported
from torch2mlx.compiler.factory import is_factory, load_factory
from torch2mlx.compiler.formats import Asked, Convert, Format
from torch2mlx.compiler.pipelines.kinds import is_pipeline
from torch2mlx.compiler.pretrained.kinds import is_class_folder, is_pretrained_model
from torch2mlx.compiler.refusals import (
    check_exported,
    check_kokoro,
    check_options,
    check_pipeline,
    check_pretrained,
    check_speech,
)
from torch2mlx.compiler.result import Compiled, of_kokoro, of_module, of_pipeline
from torch2mlx.compiler.speech.kinds import is_synthesizer
from torch2mlx.compiler.torchscript import ADVICE, is_torchscript, load_torchscript, module_of
from torch2mlx.errors import OptionError, UnsupportedError
from torch2mlx.options import ConvertOptions
from torch2mlx.progress import Progress, Silent
from torch2mlx.sources.local_files import is_there

if TYPE_CHECKING:
    import torch

    from torch2mlx.compiler.prepared import Prepared
    from torch2mlx.compiler.verification import ProgramVerification
    from torch2mlx.planning.plan import Plan
    from torch2mlx.sources.base import Checkpoint

__all__ = [
    "Compiled",
    "Example",
    "convert_program",
    "format_of",
    "is_program",
    "verify_program",
]


def is_program(source: Any, example: Example | None = None) -> bool:
    """Whether a source goes to the compiler: an object, "package.module:factory", or a file or
    folder of a format that it knows; with an example, any folder of transformers.

    Decided without importing torch.
    """
    return not isinstance(source, str | Path) or format_of(source, example) is not None


def format_of(source: str | Path, example: Example | None = None) -> Format | None:
    """The row of a file, a folder or "package.module:factory"; None: `convert` takes it as a
    checkpoint of a language model.  With an example, any folder of transformers has one.

    Decided without importing torch.
    """
    path = Path(source).expanduser()
    try:
        known = next((f for f in _FORMATS if f.knows(path)), None)
        if known is not None:
            return known
        if example is not None and example.given and is_class_folder(path):
            return _PRETRAINED
    except (OSError, ValueError):  # no name that a file could have
        return None
    return _FACTORY if is_factory(str(source)) and not is_there(path) else None


def verify_program(
    source: Path,
    folder: Path,
    known: Format,
    *,
    memory_limit: str | int,
    trust_remote_code: bool,
    progress: Progress,
) -> ProgramVerification:
    """Hold a folder against its source: code, settings, every tensor, and outputs of PyTorch.

    Args:
        source: file or folder.
        folder: what `convert` made of it.
        known: its row.
        memory_limit: memory beside the models.
        trust_remote_code: allow code that the source brings.
        progress: listener.

    Raises:
        UnsupportedError: the folder's values follow from data.
        SourceError: one of the two cannot be read, or an example would be needed.
        ParityError: something differs.
    """
    from torch2mlx.compiler.verification import recorded_options

    verify = known.answer(known.verify, source)
    options = replace(
        recorded_options(folder),
        memory_limit=memory_limit,
        trust_remote_code=trust_remote_code,
    )
    check_options(options)
    return verify(source, folder, options, progress)


def convert_program(
    source: Any,
    destination: str | Path,
    options: ConvertOptions,
    example: Example,
    progress: Progress | None = None,
) -> Compiled:
    """Compile a program, compare it with PyTorch, and publish its folder.

    Args:
        source: `nn.Module`, `ExportedProgram`, path of a file or folder that the compiler knows,
            or "package.module:factory" (a class, a function without arguments, or a module).
        destination: folder to create.
        options: `options.weights` names a checkpoint with the values of a module's weights; a
            factory is then called with its parameters on the meta device.
        example: a module needs one; an exported program brings its own.
        progress: listener.

    Raises:
        OptionError: an option that does not apply, no example, or one that does not fit.
        SourceError: the factory or a file cannot be loaded.
        CompileError: with every reason why the module has no counterpart in MLX.
        ParityError: the result differs from PyTorch's; nothing is published.
    """
    check_options(options)
    asked = Asked(destination, options, example, progress or Silent())
    if not isinstance(source, str | Path):
        return _compile(source, asked)
    known = format_of(source, example) or _FACTORY
    return known.convert(Path(source).expanduser(), asked)


def _exported_file(path: Path, asked: Asked) -> Compiled:
    program = load_exported(path, asked.options.trust_remote_code)
    return _compile(program, asked, str(path))


def _torchscript(path: Path, asked: Asked) -> Compiled:
    script = load_torchscript(path, asked.options.trust_remote_code)
    return _compile(script, asked, str(path))


def _pipeline(path: Path, asked: Asked) -> Compiled:
    from torch2mlx.compiler.pipelines.conversion import convert_pipeline

    check_pipeline(str(path), asked.options, asked.example)
    return of_pipeline(convert_pipeline(path, asked.destination, asked.options, asked.progress))


def _encoder_decoder(path: Path, asked: Asked) -> Compiled:
    from torch2mlx.compiler.encoder_decoder.conversion import compile_checkpoint

    return of_module(compile_checkpoint(path, asked.destination, asked.options, asked.progress))


def _kokoro(path: Path, asked: Asked) -> Compiled:
    from torch2mlx.audio.conversion import convert_kokoro

    check_kokoro(str(path), asked.options, asked.example)
    return of_kokoro(convert_kokoro(path, asked.destination, asked.options, asked.progress))


def _synthesizer(path: Path, asked: Asked) -> Compiled:
    from torch2mlx.compiler.speech.conversion import compile_speech

    check_speech(str(path), asked.options, asked.example)
    return of_module(compile_speech(path, asked.destination, asked.options, asked.progress))


def _pretrained_model(path: Path, asked: Asked) -> Compiled:
    from torch2mlx.compiler.pretrained.conversion import compile_pretrained

    check_pretrained(str(path), asked.options, asked.example)
    return of_module(compile_pretrained(path, asked))


def _factory(path: Path, asked: Asked) -> Compiled:
    name = str(path)
    require_example(name, asked.example)
    made = load_factory(name, on_meta=asked.options.weights is not None)
    return _compile(made, asked, name)


_Prepare = Callable[[Path, ConvertOptions], "Iterable[tuple[str, Prepared]]"]


def _compiled(
    name: str,
    knows: Callable[[Path], bool],
    convert: Convert,
    headers: Callable[[Path], Checkpoint],
    prepare: _Prepare,
) -> Format:
    """The row of a format whose examples are known; `prepare` compiles its models, by folder."""

    def plans(path: Path, options: Mapping[str, ConvertOptions]) -> dict[str, list[Plan]]:
        from torch2mlx.selection.programs import plans_of

        return plans_of(prepare(path, ConvertOptions()), options)

    def verify(
        path: Path, folder: Path, options: ConvertOptions, progress: Progress
    ) -> ProgramVerification:
        from torch2mlx.compiler.verification import verify_prepared

        return verify_prepared(folder, prepare(path, options), progress)

    return Format(name, knows, convert, headers, plans, verify)


def _prepare_pipeline(path: Path, options: ConvertOptions) -> Iterable[tuple[str, Prepared]]:
    from torch2mlx.compiler.pipelines.conversion import prepare_pipeline

    return prepare_pipeline(path, options)


def _prepare_encoder_decoder(path: Path, options: ConvertOptions) -> Iterable[tuple[str, Prepared]]:
    from torch2mlx.compiler.encoder_decoder.conversion import prepare_checkpoint

    return [("", prepare_checkpoint(path, options))]


def _prepare_speech(path: Path, options: ConvertOptions) -> Iterable[tuple[str, Prepared]]:
    from torch2mlx.compiler.speech.conversion import prepare_speech

    return [("", prepare_speech(path, options))]


def _prepare_pretrained(path: Path, options: ConvertOptions) -> Iterable[tuple[str, Prepared]]:
    from torch2mlx.compiler.pretrained.conversion import prepare_pretrained

    return [("", prepare_pretrained(path, options))]


def _verify_pretrained(
    path: Path, folder: Path, options: ConvertOptions, progress: Progress
) -> ProgramVerification:
    from torch2mlx.compiler.pretrained.conversion import verify_pretrained

    return verify_pretrained(path, folder, options, progress)


def _checkpoint(path: Path) -> Checkpoint:
    from torch2mlx.sources import open_checkpoint

    return open_checkpoint(path)


def _pipeline_headers(path: Path) -> Checkpoint:
    from torch2mlx.compiler.pipelines.headers import open_headers

    return open_headers(path)


def _kokoro_plans(path: Path, options: Mapping[str, ConvertOptions]) -> dict[str, list[Plan]]:
    from torch2mlx.audio.conversion import plan_kokoro

    return {"direct": [plan_kokoro(path, options["direct"])]}


def _verify_kokoro(
    path: Path, folder: Path, options: ConvertOptions, progress: Progress
) -> ProgramVerification:
    from torch2mlx.audio.conversion import verify_kokoro

    return verify_kokoro(path, folder, options, progress)


_PRETRAINED = replace(
    _compiled(
        "a model of transformers",
        is_pretrained_model,
        _pretrained_model,
        _checkpoint,
        _prepare_pretrained,
    ),
    verify=_verify_pretrained,
)
_FORMATS: tuple[Format, ...] = (
    Format("an exported program", is_exported_file, _exported_file),
    Format("a TorchScript archive", is_torchscript, _torchscript),
    _compiled(
        "a pipeline of diffusers", is_pipeline, _pipeline, _pipeline_headers, _prepare_pipeline
    ),
    _compiled(
        "an encoder-decoder",
        is_encoder_decoder_checkpoint,
        _encoder_decoder,
        _checkpoint,
        _prepare_encoder_decoder,
    ),
    Format(
        "Kokoro's release", is_kokoro, _kokoro, open_kokoro_headers, _kokoro_plans, _verify_kokoro
    ),
    _compiled("a speech model", is_synthesizer, _synthesizer, _checkpoint, _prepare_speech),
    _PRETRAINED,
)
"""The first that knows a path takes it."""
_FACTORY = Format("what builds a module", lambda _: False, _factory)


def _compile(source: Any, asked: Asked, location: str = "") -> Compiled:
    """An object of torch; `location` is what the user calls it."""
    import torch
    from torch.export import ExportedProgram

    if isinstance(source, torch.jit.ScriptFunction):
        raise UnsupportedError(f"ScriptFunction: only a TorchScript module is compiled; {ADVICE}")
    if isinstance(source, ExportedProgram):
        from torch2mlx.compiler.package import compile_exported

        check_exported(asked.options, asked.example)
        name = location or "an exported program"
        return of_module(
            compile_exported(
                source,
                asked.destination,
                options=asked.options,
                progress=asked.progress,
                location=name,
            )
        )
    if not isinstance(source, torch.nn.Module):
        raise OptionError(
            f"convert(): {type(source).__name__} is no source; give an nn.Module, an "
            "ExportedProgram, 'package.module:factory' or the path of a checkpoint"
        )
    if not asked.example.given:
        from torch2mlx.compiler.encoder_decoder.methods import is_encoder_decoder
        from torch2mlx.compiler.speech.synthesizer import is_speech_model

        if is_speech_model(source):
            from torch2mlx.compiler.speech.conversion import compile_speech

            check_speech(type(source).__name__, asked.options, asked.example)
            return of_module(
                compile_speech(source, asked.destination, asked.options, asked.progress)
            )
        if is_encoder_decoder(source):
            from torch2mlx.compiler.encoder_decoder.conversion import compile_model

            made = compile_model(source, asked.destination, asked.options, asked.progress, location)
            return of_module(made)
    return _compile_module(source, asked, location)


def _compile_module(module: torch.nn.Module, asked: Asked, location: str) -> Compiled:
    """Any module, on the example that was given."""
    import torch

    from torch2mlx.compiler.package import compile_module
    from torch2mlx.compiler.prepared import Extras

    options, example = asked.options, asked.example
    require_example(location or type(module).__name__, example)
    original = module
    if isinstance(module, torch.jit.ScriptModule):
        module = _from_torchscript(module, options, example)
    points = read_entry_points(module, example)
    with _open_weights(options) as weights:
        return of_module(
            compile_module(
                module,
                asked.destination,
                original=original,
                entry_points=points,
                weights=weights,
                options=options,
                progress=asked.progress,
                location=location,
                extras=Extras(files=_companions(options, weights)),
            )
        )


def _from_torchscript(
    script: torch.jit.ScriptModule, options: ConvertOptions, example: Example
) -> torch.nn.Module:
    if options.weights is not None:
        raise OptionError("--weights: TorchScript has its own weights; leave it out")
    if example.entry_points is not None:
        raise OptionError("entry points: of TorchScript only forward is compiled; give an example")
    return module_of(script, *forward_arguments(example))


@contextmanager
def _open_weights(options: ConvertOptions) -> Iterator[Checkpoint | None]:
    if options.weights is None:
        yield None
        return
    from torch2mlx.sources import open_checkpoint

    checkpoint = open_checkpoint(options.weights, revision=options.revision, needs_config=False)
    with closing(checkpoint.source):
        yield checkpoint


def _companions(options: ConvertOptions, weights: Checkpoint | None) -> Mapping[str, Path]:
    """Tokenizer, processor and pooling of a checkpoint that gave the weights.

    Beside a single file may lie what belongs to something else.
    """
    alone = weights is None or Path(str(options.weights)).is_file()
    return {} if alone or weights is None else weights.tokenizer_files
