"""Calibration as a stage of a conversion: from options and a plan to calibrated outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from torch2mlx.calibration.engine import Calibration, calibrate
from torch2mlx.calibration.fitting import Settings
from torch2mlx.calibration.texts import calibration_ids, installed_texts, read_texts
from torch2mlx.errors import DestinationError, OptionError, SourceError
from torch2mlx.packaging.chats import render_chat
from torch2mlx.packaging.lock import Lock
from torch2mlx.packaging.staging import disk_errors_told
from torch2mlx.planning.plan import Output
from torch2mlx.progress import Progress
from torch2mlx.sources.base import Checkpoint
from torch2mlx.verification.layers import longest_sequence

__all__ = [
    "DEFAULT_TOKENS",
    "DISTILLED_TOKENS",
    "calibrate_outputs",
    "calibration_folder",
    "calibration_work",
    "text_ids",
]

Array = np.ndarray[Any, Any]

DEFAULT_TOKENS = 16384
DISTILLED_TOKENS = 65536
_WINDOW = 512
_HELD_OUT = 4096  # tokens of another text, which decide what of the distillation is kept
_ANSWERED = 4  # one in so many tokens of the default text is of a chat with the model


def calibration_folder(destination: Path) -> Path:
    """Where a conversion keeps what it calibrates and tries, beside the destination.

    .DST.calibration/
        lock            locked while a run lives (`packaging.lock`)
        layers/         see `calibration.scratch`
        attempts.json   see `torch2mlx.cures.Attempts`
    """
    return destination.parent / f".{destination.name}.calibration"


@contextmanager
def calibration_work(destination: Path, wait: bool) -> Iterator[Path]:
    """The folder of `calibration_folder` while it belongs to this run.

    It is removed when the block ends well, and where nothing was put into it.

    Args:
        destination: of the conversion.
        wait: wait for another run instead of raising.

    Raises:
        DestinationError: another run calibrates for this destination, the folder cannot be
            created, or the disk is full or fails.
    """
    folder = calibration_folder(destination)
    lock = Lock(folder, wait=wait)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise DestinationError(
            f"{folder}: cannot be created: {error.strerror or error}; choose another place"
        ) from error
    try:
        with disk_errors_told(destination):
            yield folder
        lock.remove_folder()
    finally:
        if folder.exists() and not any(path != lock.path for path in folder.iterdir()):
            lock.remove_folder()
        lock.release()


def calibrate_outputs(
    checkpoint: Checkpoint,
    outputs: Sequence[Output],
    destination: Path,
    *,
    texts: Sequence[str] = (),
    tokens: int | None = None,
    samples: int = 0,
    memory_limit: int = 10**9,
    distill: bool = False,
    max_context: int | None = None,
    trust_remote_code: bool = False,
    progress: Progress,
) -> Calibration:
    """Calibrate every quantized output of a plan.

    Args:
        checkpoint: the source.
        outputs: of the plan.
        destination: of the conversion.
        texts: files; none: the texts of the Python installation and, where there is a chat
            template, a quarter of chats with the model.
        tokens: to calibrate with, and to distil with; None: `DEFAULT_TOKENS`, or
            `DISTILLED_TOKENS` with `distill`.
        samples: how many of them are drawn from the model, in place of text.
        memory_limit: bytes that the whole model may take while it writes them.
        distill: tune scales and biases afterwards, on the same tokens.
        max_context: longest sequence to run.
        trust_remote_code: allow the checkpoint's own code.
        progress: listener.

    Raises:
        OptionError: the texts are too short.
        SourceError: a text or the tokenizer cannot be read, or there is none.
        UnsupportedError: layers of this model cannot be run on their own.
    """
    length = min(_WINDOW, max_context or _WINDOW, longest_sequence(checkpoint.config))
    count = tokens or (DISTILLED_TOKENS if distill else DEFAULT_TOKENS)
    own = None
    if samples:
        from torch2mlx.calibration.sampling import sampled_ids

        with progress.stage(f"Drawing {min(samples, count):,} tokens from the model"):
            own = sampled_ids(
                checkpoint, min(samples, count), length,
                memory_limit=memory_limit, trust_remote_code=trust_remote_code,
            )  # fmt: skip

    elif not texts:
        own = _answers(
            checkpoint, count // _ANSWERED, length, memory_limit, trust_remote_code, progress
        )
    parts = [] if own is None else [own]
    left = count - sum(part.size for part in parts)
    if not parts or left >= length:
        parts.append(text_ids(checkpoint, texts, left, length, trust_remote_code))
    ids = np.concatenate(parts)
    held_out = _held_out(checkpoint, length, trust_remote_code) if distill else None
    wanted = sum(o.expr.nbytes for o in outputs if o.scheme is not None and o.packed is None)
    with _Stages(progress) as stages:
        calibrating = stages.begin(f"Calibrating with {ids.size:,} tokens", wanted)
        distilling = stages.later(f"Distilling with {ids.size:,} tokens", ids.size)
        return calibrate(
            checkpoint,
            outputs,
            ids,
            calibration_folder(destination) / "layers",
            settings=Settings(),
            trust_remote_code=trust_remote_code,
            held_out=held_out,
            progress=calibrating,
            distillation_progress=distilling,
        )


class _Stages(ExitStack):
    """Stages of progress one after the other, each with its own remaining time."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def begin(self, title: str, total: int) -> Callable[[int], None]:
        """End the stage before, and begin one."""
        self.close()
        return self.enter_context(self._progress.stage(title, total))

    def later(self, title: str, total: int) -> Callable[[int], None]:
        """A stage that begins when it is first told of."""
        begun: list[Callable[[int], None]] = []

        def advance(count: int) -> None:
            if not begun:
                begun.append(self.begin(title, total))
            begun[0](count)

        return advance


def _answers(
    checkpoint: Checkpoint,
    tokens: int,
    length: int,
    memory_limit: int,
    trust: bool,
    progress: Progress,
) -> Array | None:
    """Chats with the original model; None without a template, or the context or memory for it."""
    from torch2mlx.calibration.sampling import answer_ids, fits
    from torch2mlx.packaging.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(checkpoint.tokenizer_source, trust)
    context = longest_sequence(checkpoint.config)
    if not getattr(tokenizer, "chat_template", None) or context < _WINDOW:
        return None
    if not fits(checkpoint, memory_limit):
        progress.note(
            "the calibration text has no chats with the model, which in float32 exceeds "
            f"--memory-limit ({memory_limit / 1e9:.1f} GB)"
        )
        return None
    try:
        empty = not render_chat(tokenizer, [{"role": "user", "content": "Hello"}], answer=True)
        reason = "the chat template writes nothing"
    except SourceError as error:
        empty, reason = True, str(error)
    if empty:
        progress.note(f"the calibration text has no chats with the model: {reason}")
        return None
    with progress.stage(f"Drawing {tokens:,} tokens of chats with the model"):
        return answer_ids(checkpoint, tokenizer, tokens, length, trust_remote_code=trust)


def _held_out(checkpoint: Checkpoint, length: int, trust: bool) -> Array:
    """The built-in text, on which nothing is tuned, in sequences of `length`."""
    from torch2mlx.packaging.tokenizer import load_tokenizer
    from torch2mlx.verification.quality import evaluation_text

    tokenizer = load_tokenizer(checkpoint.tokenizer_source, trust)
    return calibration_ids(tokenizer, [evaluation_text()], _HELD_OUT, length)


def text_ids(
    checkpoint: Checkpoint, texts: Sequence[str], tokens: int, length: int, trust: bool
) -> Array:
    """Token ids [sequences, length] of the texts that a user named, or of the installation's.

    Args:
        checkpoint: its tokenizer is used.
        texts: files; none: the texts of the Python installation.
        tokens: wanted in all.
        length: of a sequence.
        trust: allow the tokenizer's own code.

    Raises:
        OptionError: the texts are too short, or chats without a chat template.
        SourceError: a file or the tokenizer cannot be read.
    """
    from torch2mlx.packaging.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(checkpoint.tokenizer_source, trust)
    if not texts:
        return calibration_ids(tokenizer, installed_texts(), tokens, length)
    documents = []
    for path, (text, chats) in zip(texts, read_texts(texts), strict=True):
        if chats and not getattr(tokenizer, "chat_template", None):
            raise OptionError(
                f"{path}: holds chats, but the checkpoint's tokenizer has no chat template; give "
                "plain text"
            )
        try:
            rendered = [render_chat(tokenizer, chat) for chat in chats]
        except SourceError as error:
            raise SourceError(f"{path}: {error}; correct the chats, or give plain text") from error
        documents.append("\n\n".join([text, *rendered] if text else rendered))
    return calibration_ids(tokenizer, [d for d in documents if d], tokens, length)
