"""What torch2mlx does with a damaged input of each format, up to reading every value."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

__all__ = ["intake", "try_checkpoint"]

Step = Callable[[], Any]


def intake(kind: str, folder: Path, output: Path | None = None) -> str:
    """Do with a case what users do with files of its format.

    Args:
        kind: the format, a key of `mutations.FORMATS`.
        folder: the case.
        output: where to convert it to; None: read and plan alone.

    Returns:
        "read", or the names of the torch2mlx errors.

    Raises:
        Exception: whatever else comes out.
    """
    return _STEPS[kind](folder, output) if kind in _STEPS else try_checkpoint(folder, output)


def _ours(steps: Iterable[Step]) -> str:
    """Take each step; the names of the errors of torch2mlx, or "read"."""
    from torch2mlx.errors import Torch2MLXError

    found = []
    for step in steps:
        try:
            step()
        except Torch2MLXError as error:
            str(error).encode()  # a message that no terminal can show is a finding
            found.append(type(error).__name__)
    return ", ".join(dict.fromkeys(found)) or "read"


def try_checkpoint(folder: Path, output: Path | None = None) -> str:
    """Open, inspect, plan and read a checkpoint; with `output`, convert it."""
    import torch2mlx

    if output is None:
        return _ours([lambda: _read_checkpoint(folder)])
    return _ours([lambda: torch2mlx.convert(folder, output, verify=False)])


def _read_checkpoint(folder: Path, *, values: bool = False, **options: Any) -> None:
    from torch2mlx.architectures.bounds import check_counts
    from torch2mlx.architectures.port import load_port
    from torch2mlx.inspection import inspect_checkpoint
    from torch2mlx.options import ConvertOptions
    from torch2mlx.planning.plan import build_plan
    from torch2mlx.planning.regions import full
    from torch2mlx.sources import open_checkpoint

    asked = ConvertOptions(verify=False, **options)
    asked.check()
    checkpoint = open_checkpoint(folder)
    with closing(checkpoint.source):
        json.dumps(inspect_checkpoint(checkpoint).to_dict())
        check_counts(checkpoint.config, checkpoint.state)
        port = load_port(checkpoint.config)
        quantize = asked.quant_options()
        build_plan(checkpoint, port, dtype=None, quantize=quantize, max_shard_size=1 << 30)
        for name in checkpoint.source.tensors:
            checkpoint.source.read(name)
        if values:  # what the tensors stand for, and the grids that MLX may keep
            for name, expr in checkpoint.state.items():
                expr.read(full(expr.shape), checkpoint.source)
                grid = checkpoint.packed.get(name)
                for part in grid.parts.values() if grid else ():
                    part.read(full(part.shape), checkpoint.source)


def _values(folder: Path, output: Path | None) -> str:
    if output is not None:
        return try_checkpoint(folder, output)
    return _ours([lambda: _read_checkpoint(folder, values=True)])


def _recipe(folder: Path, output: Path | None) -> str:
    import torch2mlx

    options = {"quantize": True, "recipe": str(folder / "recipe.toml")}
    if output is None:
        return _ours([lambda: _read_checkpoint(folder, **options)])
    return _ours([lambda: torch2mlx.convert(folder, output, verify=False, **options)])


def _plan(folder: Path, output: Path | None) -> str:
    import torch2mlx
    from torch2mlx.options import ConvertOptions
    from torch2mlx.selection.plan_file import read_plan
    from torch2mlx.sources import open_checkpoint

    def carry_out() -> None:
        order = read_plan(folder / "plan.json")
        if output is not None:
            torch2mlx.convert(order.location, output, plan=folder / "plan.json", verify=False)
            return
        order.apply(ConvertOptions(verify=False))
        with closing((checkpoint := open_checkpoint(order.location)).source):
            order.check_source(checkpoint)

    return _ours([carry_out])


def _output(folder: Path, output: Path | None) -> str:
    import torch2mlx
    from torch2mlx.conversion.journal import read_finished
    from torch2mlx.evidence.certificate import read_certificate
    from torch2mlx.evidence.recheck import check_files
    from torch2mlx.evidence.upload import plan_upload
    from torch2mlx.packaging.leftovers import find_leftovers
    from torch2mlx.packaging.lock import work_folder
    from torch2mlx.packaging.manifest import read_manifest

    made = folder / "made"

    def report() -> None:
        found = torch2mlx.report(made)
        json.dumps(found.to_dict())
        found.html().encode()
        found.markdown().encode()

    steps: list[Step] = [
        lambda: read_manifest(made),
        lambda: list(check_files(made, read_certificate(made))),
        report,
        lambda: json.dumps(torch2mlx.doctor(made).to_dict()),
        lambda: plan_upload(made, "owner/name"),
        lambda: [x.describe() for x in find_leftovers(folder)],
        lambda: read_finished(work_folder(folder / "out")),
    ]
    if output is not None:
        steps += [
            lambda: torch2mlx.verify_certificate(made),
            lambda: torch2mlx.load(made),
            lambda: torch2mlx.convert(made, output, dequantize=True, verify=False),
        ]
    return _ours(steps)


def _code(folder: Path, output: Path | None) -> str:
    import torch2mlx

    steps: list[Step] = [
        lambda: _read_checkpoint(folder),
        lambda: torch2mlx.load(folder),
        lambda: torch2mlx.doctor(folder),
    ]
    if output is not None:
        steps.append(lambda: torch2mlx.convert(folder, output))
    return _ours(steps)


def _tokenizer(folder: Path, output: Path | None) -> str:
    from torch2mlx.packaging.tokenizer import check_tokenizer, load_tokenizer
    from torch2mlx.sources.original.tokenizer import ConvertedTokenizer, find_tokenizer

    if output is not None:
        return try_checkpoint(folder, output)
    file = find_tokenizer(folder)

    def compare() -> None:
        place = ConvertedTokenizer(file).folder if file else folder
        load_tokenizer(place)
        check_tokenizer(place, place)

    return _ours([compare])


def _synthesizer(folder: Path, output: Path | None) -> str:
    from torch2mlx.compiler.speech.kinds import is_synthesizer
    from torch2mlx.compiler.speech.synthesizer import load_speech_model, parts_of

    def speak() -> None:
        parts_of(_loaded_twice(lambda: load_speech_model(folder)))

    steps = [lambda: _inspect(folder), *([speak] if is_synthesizer(folder) else [])]
    return _ours([*steps, *_conversion(folder, output)])


def _whisper(folder: Path, output: Path | None) -> str:
    from torch2mlx.compiler.encoder_decoder.methods import load_original, methods_of
    from torch2mlx.sources.original.whisper import is_whisper

    file = folder / "tiny.pt"

    def listen() -> None:
        methods_of(_loaded_twice(lambda: load_original(file)))

    steps = [lambda: _inspect(file), *([listen] if is_whisper(file) else [])]
    return _ours([*steps, *_conversion(file, output)])


def _kokoro(folder: Path, output: Path | None) -> str:
    from torch2mlx.audio.kokoro import is_kokoro, open_kokoro
    from torch2mlx.audio.libraries import read_voice
    from torch2mlx.planning.regions import full

    def read() -> None:
        opened = open_kokoro(folder)
        with closing(opened.source):
            for expr in opened.state.values():
                expr.read(full(expr.shape), opened.source)
            for voice in opened.voices.values():
                read_voice(voice)

    steps = [lambda: _inspect(folder), *([read] if is_kokoro(folder) else [])]
    return _ours([*steps, *_conversion(folder, output)])


def _inspect(source: Path) -> None:
    import torch2mlx

    json.dumps(torch2mlx.inspect(source).to_dict())


def _conversion(source: Path, output: Path | None) -> list[Step]:
    import torch2mlx

    return [] if output is None else [lambda: torch2mlx.convert(source, output, verify=False)]


def _loaded_twice(load: Callable[[], Any]) -> Any:
    """A model whose weights all come from its files: none is drawn anew."""
    import torch

    first, second = load(), load()
    again = second.state_dict()
    for name, value in first.state_dict().items():
        if not torch.equal(value.nan_to_num(), again[name].nan_to_num()):
            raise AssertionError(f"{name} has other values each time")
    return first


_STEPS: dict[str, Callable[[Path, Path | None], str]] = {
    "packed": _values,
    "hqq": _values,
    "torchao": _values,
    "whisper": _whisper,
    "synthesizer": _synthesizer,
    "kokoro": _kokoro,
    "adapter": _values,
    "original": _values,
    "recipe": _recipe,
    "plan": _plan,
    "output": _output,
    "code": _code,
    "tokenizer": _tokenizer,
}
