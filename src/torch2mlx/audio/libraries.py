"""The two libraries that run a Kokoro: its authors' own in PyTorch, and mlx-audio."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from torch2mlx.audio.kokoro import Kokoro, port_name
from torch2mlx.errors import ParityError, UnsupportedError
from torch2mlx.messages import first_line
from torch2mlx.verification.reference import quiet

__all__ = [
    "check_tensors",
    "load_original",
    "load_port",
    "original_class",
    "read_voice",
    "require_libraries",
]

_MOST_LENGTHS = 1 << 16  # of a voice; real ones have 510


def require_libraries(verify: bool) -> None:
    """Raise UnsupportedError unless mlx-audio and, to compare with, kokoro are installed."""
    needed = {"mlx_audio": "mlx-audio", **({"kokoro": "kokoro"} if verify else {})}
    missing = [package for name, package in needed.items() if not importlib.util.find_spec(name)]
    if missing:
        less = "" if "mlx-audio" in missing else ", or leave the comparison out with --no-verify"
        raise UnsupportedError(
            f"{' and '.join(missing)}: not installed, which run a Kokoro in MLX and in PyTorch; "
            f"pip install 'torch2mlx[audio]'{less}"
        )


def original_class() -> Any:
    """`KModel`, the authors' model of phonemes.

    Its package also loads dictionaries of languages, which that does not need: only the modules
    of the model are imported.
    """
    with _package_alone("kokoro"):
        module = importlib.import_module("kokoro.model")
    module.logger.disable("kokoro")
    return module.KModel


def load_original(kokoro: Kokoro) -> Any:
    """`KModel` with the release's weights.

    Raises:
        UnsupportedError: the library does not take this release.
    """
    kind = original_class()
    try:
        with quiet():
            made = kind(repo_id="local", config=dict(kokoro.config), model=str(kokoro.file))
    except Exception as error:  # whatever a damaged release provokes
        raise UnsupportedError(f"{kokoro.file}: kokoro does not load it: {error!r:.400}") from error
    return made.eval()


@contextmanager
def _package_alone(name: str) -> Iterator[None]:
    """While it lasts, a package's modules can be imported without what its __init__ imports."""
    if name in sys.modules:
        yield
        return
    spec = importlib.util.find_spec(name)
    assert spec is not None
    package = ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules[name] = package
    try:
        yield
    finally:
        del sys.modules[name]


def load_port(folder: Path) -> Any:
    """The folder as mlx-audio loads it.

    Raises:
        ParityError: it does not load.
    """
    tts = importlib.import_module("mlx_audio.tts")
    try:
        return tts.load(folder)
    except Exception as error:  # of whatever kind, what was written is of no use
        text = " ".join(str(error).split())[:400]
        raise ParityError(
            f"mlx-audio does not load what was written: {type(error).__name__}: {text}"
        ) from error


def check_tensors(kokoro: Kokoro, port: Any) -> int:
    """Compare every tensor as mlx-audio holds it with its source, bit for bit.

    Returns:
        how many there are.

    Raises:
        ParityError: one differs, is missing, or comes from nowhere; names the first.
    """
    import mlx.core as mx
    from mlx.utils import tree_flatten

    from torch2mlx.dtypes import to_mx

    held = dict(tree_flatten(port.parameters()))
    for name, expr in kokoro.state.items():
        ours, exchanged = port_name(name, len(expr.shape))
        value = to_mx(kokoro.source.read(name), expr.dtype)
        value = value.swapaxes(-1, -2) if exchanged else value
        found = held.pop(ours, None)
        if found is None or found.shape != value.shape or not mx.array_equal(found, value).item():
            shape = "no such tensor" if found is None else f"{list(found.shape)}"
            raise ParityError(
                f"{name} {list(expr.shape)}: mlx-audio holds {shape} as {ours}, and other values "
                "than the release's; nothing was written"
            )
    if held:
        raise ParityError(
            f"{len(held)} weights of mlx-audio's model come from no tensor: {', '.join(held)[:200]}"
        )
    return len(kokoro.state)


def read_voice(file: Path) -> torch.Tensor:
    """A voice: a style for each length of a text [lengths, 1, 256], in float32.

    Raises:
        UnsupportedError: the file holds something else.
    """
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file provokes
        raise UnsupportedError(f"{file}: no voice: {first_line(error)}") from error
    if not isinstance(found, torch.Tensor) or found.ndim != 3 or tuple(found.shape[1:]) != (1, 256):
        shown = list(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise UnsupportedError(f"{file}: no voice: expected [lengths, 1, 256], found {shown}")
    lengths = len(found)
    values = found.is_floating_point() and found.layout is torch.strided and not found.is_meta
    if not values or not 1 <= lengths <= _MOST_LENGTHS:
        raise UnsupportedError(
            f"{file}: no voice: {lengths:,} lengths in {found.dtype}, {found.layout}, on "
            f"{found.device}; expected 1 to {_MOST_LENGTHS:,} in floating point"
        )
    if not bool(torch.isfinite(found).all()):
        raise UnsupportedError(f"{file}: a voice with NaN or Inf; download it again")
    return found.float().contiguous()
