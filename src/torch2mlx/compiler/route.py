"""From what a user has (a module, a factory's name, a `.pt2` file) to a compiled folder."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.audio.kokoro import is_kokoro
from torch2mlx.compiler.dimensions import parse_dynamic
from torch2mlx.compiler.entry_points import (
    Arguments,
    EntryPoint,
    as_arguments,
    check_methods,
    read_arguments,
)
from torch2mlx.compiler.meta import parameters_on_meta
from torch2mlx.compiler.pipelines.kinds import is_pipeline
from torch2mlx.compiler.speech.kinds import is_synthesizer
from torch2mlx.compiler.torchscript import ADVICE, is_torchscript, load_torchscript, module_of
from torch2mlx.errors import OptionError, SourceError, UnsupportedError
from torch2mlx.options import ConvertOptions
from torch2mlx.planning.plan import FLOAT_DTYPES
from torch2mlx.progress import Progress, Silent
from torch2mlx.sources.local_files import is_there, read_json_object

if TYPE_CHECKING:
    import torch

    from torch2mlx.compiler.publish import CompiledModule
    from torch2mlx.sources.base import Checkpoint

__all__ = ["Compiled", "Example", "convert_program", "is_program"]

_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_REFUSED = {
    "distill": "--distill: belongs to ports of language models; leave it out",
    "calibration_tokens": "--calibration-tokens: belongs to ports of language models; a module is "
    "calibrated with all of its example and of --calibration-text FILE.pt",
    "target_bpw": "--target-bpw: belongs to ports of language models; choose --q-bits",
    "fit": "--fit: belongs to ports of language models; choose --q-bits",
    "max_kl": "--max-kl: belongs to ports of language models; leave it out",
    "min_top1": "--min-top1: belongs to ports of language models; leave it out",
    "max_perplexity": "--max-perplexity: belongs to ports of language models; leave it out",
    "max_loops": "--max-loops: belongs to ports of language models; leave it out",
    "calibration_samples": "--calibration-samples: a module writes no text; leave it out",
    "auto": "--auto: belongs to ports of language models; leave it out",
    "adapter": "--adapter: belongs to checkpoints; merge it into the module before",
    "expert_layout": "--expert-layout: belongs to checkpoints; leave it out",
    "text_only": "--text-only: belongs to multimodal checkpoints; leave it out",
    "dequantize": "-d: a module has no quantized layers of MLX; leave it out",
    "keep_download": "--keep-download: belongs to a hub id as SRC; leave it out",
    "max_context": "--max-context: belongs to ports of language models; bound an extent with "
    "--dynamic x:1=length:2..4096",
}


@dataclass(frozen=True)
class Example:
    """What a module is called with while it is exported, and which extents may change.

    Attributes:
        inputs: positional arguments of `forward`.
        kwargs: its keyword arguments.
        dynamic_shapes: as for `torch.export.export`.
        file: a file with the arguments instead (see `read_arguments`).
        dynamic: "argument:axis=name" texts instead of `dynamic_shapes`.
        entry_points: method → its arguments (a tuple, a dict of keyword arguments, or a tensor)
            or "method=file" texts, in place of an example of `forward`; `dynamic_shapes` is then
            a dict by method, and `dynamic` has "method/argument:axis=name" texts.
    """

    inputs: Sequence[Any] | None = None
    kwargs: Mapping[str, Any] | None = None
    dynamic_shapes: Any = None
    file: str | Path | None = None
    dynamic: Sequence[str] = ()
    entry_points: Mapping[str, Any] | Sequence[str] | None = None

    @property
    def given(self) -> bool:
        """Anything was said at all."""
        return self != Example()


@dataclass(frozen=True)
class Compiled:
    """What the compiler made.

    Attributes:
        destination: the published folder; its URL where that is remote.
        model_class: name of the root class in its model.py.
        operators: number of ATen calls that were lowered.
        cases: inputs on which it was compared with PyTorch.
        error: largest relative L2 error there, before quantization; None: not compared.
        limit: that it had to keep, by the coarsest dtype.
        total_size: bytes of the weights.
        bits_per_weight: measured on the files.
        quantization: the entry of config.json, or None; of a pipeline by component.
        drift: relative L2 distance that quantization added on the example, or None.
        notes: what a user should know.
        parts: of a pipeline: component → largest error there, or None; each has a model.py.
        library: that loads the folder; None: its own model.py does.
    """

    destination: Path | str
    model_class: str
    operators: int
    cases: tuple[str, ...]
    error: float | None
    limit: float | None
    total_size: int
    bits_per_weight: float
    quantization: Mapping[str, Any] | None = None
    drift: float | None = None
    notes: tuple[str, ...] = ()
    parts: Mapping[str, float | None] = field(default_factory=dict)
    library: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "destination": str(self.destination)}


def is_program(source: Any) -> bool:
    """Whether a source goes to the compiler: an object, "package.module:factory", a `.pt2`
    or TorchScript file, the checkpoint of an encoder-decoder or of a speech model, or a pipeline
    of diffusers.

    Decided without importing torch.
    """
    if not isinstance(source, str | Path):
        return True
    path = Path(source)
    if path.suffix == ".pt2" or is_torchscript(path) or _is_encoder_decoder(path):
        return True
    if is_pipeline(path) or is_synthesizer(path) or is_kokoro(path):
        return True
    return _FACTORY.fullmatch(str(source)) is not None and not is_there(path)


def convert_program(
    source: Any,
    destination: str | Path,
    options: ConvertOptions,
    example: Example,
    progress: Progress | None = None,
) -> Compiled:
    """Compile a program, compare it with PyTorch, and publish its folder.

    Args:
        source: `nn.Module`, `ExportedProgram`, path of a `.pt2` file or of a TorchScript archive,
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
    _check_options(options)
    listener = progress or Silent()
    location = str(source) if isinstance(source, str | Path) else ""
    if isinstance(source, str | Path) and Path(source).suffix == ".pt2":
        source = load_exported(Path(source), options.trust_remote_code)
    elif isinstance(source, str | Path) and is_torchscript(Path(source)):
        source = load_torchscript(Path(source), options.trust_remote_code)
    elif isinstance(source, str | Path) and is_pipeline(Path(source)):
        return _convert_pipeline(Path(source), destination, options, example, listener)
    elif _is_encoder_decoder(source):
        return _compile_encoder_decoder(Path(source), destination, options, listener)
    elif isinstance(source, str | Path) and is_kokoro(Path(source)):
        return _convert_kokoro(Path(source), destination, options, example, listener)
    elif isinstance(source, str | Path) and is_synthesizer(Path(source)):
        return _compile_speech(Path(source), destination, options, example, listener)
    elif isinstance(source, str):
        _require_example(source, example)
        source = load_factory(source, on_meta=options.weights is not None)
    import torch
    from torch.export import ExportedProgram

    if isinstance(source, torch.jit.ScriptFunction):
        raise UnsupportedError(f"ScriptFunction: only a TorchScript module is compiled; {ADVICE}")
    if isinstance(source, ExportedProgram):
        return _compile_exported(source, destination, options, example, listener, location)
    if not isinstance(source, torch.nn.Module):
        raise OptionError(
            f"convert(): {type(source).__name__} is no source; give an nn.Module, an "
            "ExportedProgram, 'package.module:factory' or the path of a checkpoint"
        )
    from torch2mlx.compiler.encoder_decoder import is_encoder_decoder
    from torch2mlx.compiler.speech.synthesizer import is_speech_model

    if not example.given and is_speech_model(source):
        return _compile_speech(source, destination, options, example, listener)
    if not example.given and is_encoder_decoder(source):
        return _compile_methods(source, destination, options, listener, location)
    _require_example(location or type(source).__name__, example)
    from torch2mlx.compiler.package import compile_module
    from torch2mlx.compiler.publish import Extras

    original = source
    if isinstance(source, torch.jit.ScriptModule):
        source = _from_torchscript(source, options, example)
    points = read_entry_points(source, example)
    with _open_weights(options) as weights:
        return _result(
            compile_module(
                source,
                destination,
                original=original,
                entry_points=points,
                weights=weights,
                options=options,
                progress=listener,
                location=location,
                extras=Extras(files=_companions(options, weights)),
            )
        )


def _companions(options: ConvertOptions, weights: Checkpoint | None) -> Mapping[str, Path]:
    """Tokenizer, processor and pooling of a checkpoint that gave the weights.

    Beside a single file may lie what belongs to something else.
    """
    alone = weights is None or Path(str(options.weights)).is_file()
    return {} if alone or weights is None else weights.tokenizer_files


def _is_encoder_decoder(source: Any) -> bool:
    """Whether a source is the folder of an encoder-decoder's checkpoint, or OpenAI's Whisper."""
    if not isinstance(source, str | Path):
        return False
    from torch2mlx.sources.original.whisper import is_whisper

    if is_whisper(Path(source)):
        return True
    config = Path(source) / "config.json"
    if not config.is_file():
        return False
    try:
        found = read_json_object(config)
    except SourceError:
        return False  # opening the checkpoint will tell
    names = found.get("architectures")
    names = names if isinstance(names, list) else []
    generates = any(str(n).endswith("ForConditionalGeneration") for n in names)
    # Others with such a name are language models that also take images.
    return generates and found.get("is_encoder_decoder") is True


def _compile_encoder_decoder(
    path: Path, destination: str | Path, options: ConvertOptions, progress: Progress
) -> Compiled:
    from torch2mlx.compiler.encoder_decoder import load_encoder_decoder, load_original
    from torch2mlx.sources.companions import companion_files

    if path.is_file():
        model, files = load_original(path), {}
    else:
        model, files = load_encoder_decoder(path), companion_files(path)
        options = replace(options, dtype=options.dtype or _own_dtype(path, model))
    return _compile_methods(model, destination, options, progress, str(path), files)


def _own_dtype(path: Path, model: Any) -> str | None:
    """The half type of a checkpoint, where transformers itself computes in it all through."""
    found = read_json_object(path / "config.json")
    name = str(found.get("dtype") or found.get("torch_dtype"))
    exact = getattr(model, "_keep_in_fp32_modules", None)  # such as T5's, which overflow
    halves = ("bfloat16",) if exact else ("bfloat16", "float16")
    return name if name in halves else None


def _compile_methods(
    model: torch.nn.Module,
    destination: str | Path,
    options: ConvertOptions,
    progress: Progress,
    location: str,
    files: Mapping[str, Path] | None = None,
) -> Compiled:
    """An encoder-decoder of transformers, whose examples are known."""
    from torch2mlx.compiler.encoder_decoder import methods_of
    from torch2mlx.compiler.package import compile_module
    from torch2mlx.compiler.publish import Extras

    if options.weights is not None:
        raise OptionError("--weights: an encoder-decoder has its own weights; leave it out")
    made = methods_of(model.eval())
    points = [
        EntryPoint(method, (), arguments, made.dynamic_shapes[method])
        for method, arguments in made.entry_points.items()
    ]
    return _result(
        compile_module(
            made.module,
            destination,
            entry_points=points,
            options=options,
            progress=progress,
            location=location or f"{type(model).__module__}.{type(model).__qualname__}",
            extras=Extras(
                {"generation": {**made.settings, "dtype": options.dtype or "float32"}}, files or {}
            ),
        )
    )


def _compile_speech(
    source: Path | torch.nn.Module,
    destination: str | Path,
    options: ConvertOptions,
    example: Example,
    progress: Progress,
) -> Compiled:
    """A speech model of transformers, whose examples are known: its folder, or the module."""
    from torch2mlx.compiler.package import compile_module
    from torch2mlx.compiler.publish import Extras
    from torch2mlx.compiler.speech.synthesizer import load_speech_model, parts_of
    from torch2mlx.sources.companions import companion_files

    if given := _not_of_speech(options, example):
        raise OptionError(
            f"{source if isinstance(source, Path) else type(source).__name__}: "
            f"{' and '.join(given)}: a speech model has its own example and weights, and computes "
            "in float32, because durations are rounded; leave it out"
        )
    if isinstance(source, Path):
        model, files, location = load_speech_model(source), companion_files(source), str(source)
    else:
        model, files = source, {}
        location = f"{type(model).__module__}.{type(model).__qualname__}"
    made = parts_of(model)
    extras = Extras(files=files, host=made.host, notes=made.notes)
    return _result(
        compile_module(
            made.module,
            destination,
            entry_points=made.entry_points,
            options=options,
            progress=progress,
            location=location,
            extras=extras,
        )
    )


def _not_of_speech(options: ConvertOptions, example: Example) -> list[str]:
    """What was given that a speech model has of its own."""
    given = {
        "an example": example.given,
        "--weights": options.weights is not None,
        f"--dtype {options.dtype}": options.dtype not in (None, "float32"),
    }
    return [name for name, there in given.items() if there]


def _convert_kokoro(
    source: Path,
    destination: str | Path,
    options: ConvertOptions,
    example: Example,
    progress: Progress,
) -> Compiled:
    from torch2mlx.audio.conversion import convert_kokoro

    given = _not_of_speech(options, example)
    if options.quant_options() is not None:
        given.append("quantization")
    if given:
        raise OptionError(
            f"{source}: {' and '.join(given)}: Kokoro is converted with its own weights as they "
            "are; leave it out"
        )
    made = convert_kokoro(source, destination, options, progress)
    weights, compared = made.manifest.weights, made.comparison
    return Compiled(
        made.folder,
        "Kokoro",
        0,
        tuple(dict.fromkeys(r.case for r in compared.records)) if compared else (),
        compared.worst if compared else None,
        max(r.limit for r in compared.records) if compared else None,
        int(weights["total_size"]),
        weights["bits_per_weight"],
        notes=made.notes,
        library="mlx-audio",
    )


def _convert_pipeline(
    source: Path,
    destination: str | Path,
    options: ConvertOptions,
    example: Example,
    progress: Progress,
) -> Compiled:
    from torch2mlx.compiler.pipelines.conversion import convert_pipeline

    given = {"an example": example.given, "--weights": options.weights is not None}
    if any(given.values()):
        raise OptionError(
            f"{source}: {' and '.join(n for n, g in given.items() if g)}: a pipeline has its own; "
            "leave it out"
        )
    made = convert_pipeline(source, destination, options, progress)
    weights = [m.weights for m in made.manifests.values()]
    size = sum(int(w["total_size"]) for w in weights)
    proofs = {n: m.verification for n, m in made.manifests.items()}
    errors = {n: p.get("error") for n, p in proofs.items()}
    compared = [p for p in proofs.values() if p.get("error") is not None]
    return Compiled(
        made.folder,
        made.name,
        made.operators,
        tuple(dict.fromkeys(case for p in compared for case in p["cases"])),
        max((p["error"] for p in compared), default=None),
        max((p["limit"] for p in compared), default=None),
        size,
        size / sum(int(w["total_size"]) / w["bits_per_weight"] for w in weights),
        made.quantization or None,
        notes=made.notes,
        parts=errors,
    )


@contextmanager
def _open_weights(options: ConvertOptions) -> Iterator[Checkpoint | None]:
    if options.weights is None:
        yield None
        return
    from torch2mlx.sources import open_checkpoint

    checkpoint = open_checkpoint(options.weights, revision=options.revision, needs_config=False)
    with closing(checkpoint.source):
        yield checkpoint


def _compile_exported(
    program: Any,
    destination: str | Path,
    options: ConvertOptions,
    example: Example,
    progress: Progress,
    location: str,
) -> Compiled:
    from torch2mlx.compiler.package import compile_exported

    if example.given:
        raise OptionError(
            "an exported program brings its own example and dynamic shapes; leave out "
            "example inputs and dynamic shapes, or convert the module itself"
        )
    refused = {"--dtype": options.dtype, "--weights": options.weights}
    given = [flag for flag, value in refused.items() if value is not None]
    if given:
        raise OptionError(
            f"{', '.join(given)}: an exported program has the dtypes and weights that it was "
            "exported with; change the module and export it again, or convert the module itself"
        )
    return _result(
        compile_exported(
            program,
            destination,
            options=options,
            progress=progress,
            location=location or "an exported program",
        )
    )


def _result(made: CompiledModule) -> Compiled:
    agreement, quantized = made.agreement, made.quantized
    weights = made.manifest.weights
    return Compiled(
        made.folder,
        made.class_name,
        made.operators,
        agreement.cases if agreement else (),
        agreement.worst if agreement else None,
        agreement.limit if agreement else None,
        int(weights["total_size"]),
        weights["bits_per_weight"],
        quantized.assignment.to_config() if quantized else None,
        quantized.drift if quantized else None,
        tuple(made.manifest.plan["notes"]),
    )


def _check_options(options: ConvertOptions) -> None:
    default = ConvertOptions()
    refused = [t for n, t in _REFUSED.items() if getattr(options, n) != getattr(default, n)]
    if options.revision is not None and options.weights is None:
        refused.append("--revision: belongs to a hub id in --weights; leave it out")
    if options.precision_policy() != {}:
        refused.append("--runtime-precision: belongs to ports of language models; leave it out")
    if options.dtype is not None and options.dtype not in FLOAT_DTYPES:
        refused.append(f"--dtype {options.dtype}: choose one of {', '.join(FLOAT_DTYPES)}")
    if refused:
        raise OptionError("; ".join(refused))


def _from_torchscript(
    script: torch.jit.ScriptModule, options: ConvertOptions, example: Example
) -> torch.nn.Module:
    if options.weights is not None:
        raise OptionError("--weights: TorchScript has its own weights; leave it out")
    if example.entry_points is not None:
        raise OptionError("entry points: of TorchScript only forward is compiled; give an example")
    return module_of(script, *_forward_arguments(example))


def _require_example(name: str, example: Example) -> None:
    given = (example.inputs, example.kwargs, example.file, example.entry_points)
    if all(value is None for value in given):
        raise OptionError(
            f"{name}: an example is needed to follow the computation: --example inputs.pt on the "
            "command line, example_inputs=(x,) in Python"
        )


def load_factory(name: str, on_meta: bool = False) -> Any:
    """The module that "package.module:factory" makes, in inference mode.

    The working directory is searched first, as `python -m` does.

    Args:
        name: of the factory.
        on_meta: keep its parameters on the meta device, where they take no memory; buffers are
            made as ever.

    Raises:
        SourceError: it cannot be imported, found or called, or makes something else.
    """
    import torch

    module_name, _, attribute = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        importlib.invalidate_caches()
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise SourceError(
            f"{name}: {module_name} cannot be imported ({type(error).__name__}: {error}); run in "
            "the folder that holds it, or install it"
        ) from error
    finally:
        sys.path.remove(str(Path.cwd()))
    try:
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        names = [n for n in vars(importlib.import_module(module_name)) if n[0] != "_"]
        raise SourceError(
            f"{name}: {error}; it defines {', '.join(names[:12]) or 'nothing'}"
        ) from error
    if not isinstance(found, torch.nn.Module):
        if not callable(found):
            raise SourceError(f"{name}: a {type(found).__name__}, not a function or an nn.Module")
        try:
            with parameters_on_meta() if on_meta else nullcontext():
                found = found()
        except Exception as error:
            meta = ", called with its parameters on the meta device," if on_meta else ""
            raise SourceError(
                f"{name}(){meta} fails: {type(error).__name__}: {error}; a factory takes no "
                "arguments and returns the module with its weights"
            ) from error
    if not isinstance(found, torch.nn.Module):
        raise SourceError(f"{name}() returns a {type(found).__name__}, not an nn.Module")
    return found.eval()


def load_exported(file: Path, trust_remote_code: bool) -> Any:
    """The program in a `.pt2` file.

    `torch.export.load` unpickles what is not plain, and evaluates its expressions of sizes with
    SymPy, which is `eval`: whoever made the file can run code here.

    Raises:
        UnsupportedError: without consent to that.
        SourceError: there is none that this version of torch can read, or it has no example.
    """
    import torch

    if not file.is_file():
        raise SourceError(f"{file}: no such file")
    if not trust_remote_code:
        raise UnsupportedError(
            f"{file}: an exported program can bring code, which would run here; if you trust it, "
            "add --trust-remote-code, or convert the module itself"
        )
    try:
        program = torch.export.load(file)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SourceError(
            f"{file}: torch {torch.__version__} cannot read it as an exported program ({reason}); "
            "write it again with torch.export.save under this version of torch, or convert the "
            "module itself"
        ) from error
    if program.example_inputs is None:
        raise SourceError(
            f"{file}: it was saved without its example inputs, so nothing can be compared; export "
            "and save it again, or convert the module itself"
        )
    return program


def read_entry_points(module: torch.nn.Module, example: Example) -> list[EntryPoint]:
    """The methods to compile, each with its arguments and dynamic extents.

    Raises:
        OptionError: no such method, a file or value that is no example, or a text that does not
            fit the method.
    """
    named = _arguments(example)
    check_methods(module, list(named))
    texts: dict[str, list[str]] = {}
    for text in example.dynamic:
        method, _, rest = text.rpartition("/")
        method = method or "forward"
        if method not in named:
            raise OptionError(
                f"--dynamic {text}: no entry point {method!r}; write method/argument:axis=name "
                f"with one of {', '.join(named)}"
            )
        texts.setdefault(method, []).append(rest)
    shapes = example.dynamic_shapes
    if example.entry_points is not None:
        unknown = set(shapes or {}) - set(named)
        if unknown:
            raise OptionError(
                f"dynamic_shapes: with entry points a dict by method; {', '.join(sorted(unknown))} "
                "is none of them"
            )
    else:
        shapes = {"forward": shapes}
    points = []
    for method, (args, kwargs) in named.items():
        dynamic = (shapes or {}).get(method)
        if method in texts:
            dynamic = parse_dynamic(texts[method], getattr(module, method), args, kwargs)
        points.append(EntryPoint(method, args, kwargs, dynamic))
    return points


def _arguments(example: Example) -> dict[str, Arguments]:
    """Method → positional and keyword arguments."""
    given = example.entry_points
    if given is None:
        return {"forward": _forward_arguments(example)}
    if example.file is not None or example.inputs is not None or example.kwargs is not None:
        raise OptionError(
            "an example of forward and entry points: name forward as one of the entry points"
        )
    if not isinstance(given, Mapping):
        files: dict[str, str] = {}
        for text in given:
            method, equals, file = text.partition("=")
            if not equals or not method.isidentifier() or not file:
                raise OptionError(f"--entry {text}: write method=file, as in encode=inputs.pt")
            if method in files:
                raise OptionError(f"--entry {text}: {method} is given twice")
            files[method] = file
        return {m: read_arguments(file, f"--entry {m}=") for m, file in files.items()}
    if not given:
        raise OptionError("entry_points is empty; name a method and its arguments")
    return {method: as_arguments(value, f"entry point {method}") for method, value in given.items()}


def _forward_arguments(example: Example) -> Arguments:
    if example.file is None:
        inputs = () if example.inputs is None else example.inputs
        if not isinstance(inputs, tuple | list):
            raise OptionError(f"example_inputs is a {type(inputs).__name__}; give a tuple: (x,)")
        return tuple(inputs), dict(example.kwargs or {})
    if example.inputs is not None or example.kwargs is not None:
        raise OptionError("the example is given twice: as a file and as values")
    return read_arguments(example.file, "--example ")
