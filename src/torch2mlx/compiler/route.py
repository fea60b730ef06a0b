"""From what a user has (a module, a factory's name, a file or folder) to a compiled folder.

Every kind of source has a row in `_FORMATS` or a branch by its class in `_compile`; what becomes of
it is in a module of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.audio.kokoro import is_kokoro
from torch2mlx.compiler.encoder_decoder.kinds import is_encoder_decoder_checkpoint
from torch2mlx.compiler.example import (
    Example,
    forward_arguments,
    read_entry_points,
    require_example,
)
from torch2mlx.compiler.exported_file import is_exported_file, load_exported
from torch2mlx.compiler.factory import is_factory, load_factory
from torch2mlx.compiler.pipelines.kinds import is_pipeline
from torch2mlx.compiler.refusals import (
    check_exported,
    check_kokoro,
    check_options,
    check_pipeline,
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

    from torch2mlx.sources.base import Checkpoint

__all__ = ["Compiled", "Example", "convert_program", "is_program"]


def is_program(source: Any) -> bool:
    """Whether a source goes to the compiler: an object, "package.module:factory", or a file or
    folder of a format that it knows.

    Decided without importing torch.
    """
    if not isinstance(source, str | Path):
        return True
    path = Path(source)
    if any(is_one(path) for is_one, _ in _FORMATS):
        return True
    return is_factory(str(source)) and not is_there(path)


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
    asked = _Asked(destination, options, example, progress or Silent())
    if isinstance(source, str | Path):
        path = Path(source)
        for is_one, convert in _FORMATS:
            if is_one(path):
                return convert(path, asked)
    if not isinstance(source, str):
        return _compile(source, asked)
    require_example(source, example)
    return _compile(load_factory(source, on_meta=options.weights is not None), asked, source)


@dataclass(frozen=True)
class _Asked:
    """What `convert_program` is asked for, beside the source."""

    destination: str | Path
    options: ConvertOptions
    example: Example
    progress: Progress


def _exported_file(path: Path, asked: _Asked) -> Compiled:
    program = load_exported(path, asked.options.trust_remote_code)
    return _compile(program, asked, str(path))


def _torchscript(path: Path, asked: _Asked) -> Compiled:
    script = load_torchscript(path, asked.options.trust_remote_code)
    return _compile(script, asked, str(path))


def _pipeline(path: Path, asked: _Asked) -> Compiled:
    from torch2mlx.compiler.pipelines.conversion import convert_pipeline

    check_pipeline(str(path), asked.options, asked.example)
    return of_pipeline(convert_pipeline(path, asked.destination, asked.options, asked.progress))


def _encoder_decoder(path: Path, asked: _Asked) -> Compiled:
    from torch2mlx.compiler.encoder_decoder.conversion import compile_checkpoint

    return of_module(compile_checkpoint(path, asked.destination, asked.options, asked.progress))


def _kokoro(path: Path, asked: _Asked) -> Compiled:
    from torch2mlx.audio.conversion import convert_kokoro

    check_kokoro(str(path), asked.options, asked.example)
    return of_kokoro(convert_kokoro(path, asked.destination, asked.options, asked.progress))


def _synthesizer(path: Path, asked: _Asked) -> Compiled:
    from torch2mlx.compiler.speech.conversion import compile_speech

    check_speech(str(path), asked.options, asked.example)
    return of_module(compile_speech(path, asked.destination, asked.options, asked.progress))


_FORMATS: tuple[tuple[Callable[[Path], bool], Callable[[Path, _Asked], Compiled]], ...] = (
    (is_exported_file, _exported_file),
    (is_torchscript, _torchscript),
    (is_pipeline, _pipeline),
    (is_encoder_decoder_checkpoint, _encoder_decoder),
    (is_kokoro, _kokoro),
    (is_synthesizer, _synthesizer),
)
"""Files and folders that are compiled: what knows one by names and headers alone, and what converts
it.  The first that knows a path takes it."""


def _compile(source: Any, asked: _Asked, location: str = "") -> Compiled:
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


def _compile_module(module: torch.nn.Module, asked: _Asked, location: str) -> Compiled:
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
