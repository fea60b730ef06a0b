"""Calibration as a stage of a conversion: from options and a plan to calibrated outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torch2mlx.calibration.allocation import Allocation, allocate, sensitivities
from torch2mlx.calibration.engine import Calibration, Settings, calibrate, find_head
from torch2mlx.calibration.texts import calibration_ids, installed_texts, read_texts
from torch2mlx.errors import OptionError
from torch2mlx.planning.plan import Output
from torch2mlx.progress import Progress
from torch2mlx.quantization.scheme import Scheme
from torch2mlx.sources.base import Checkpoint

__all__ = ["DEFAULT_TOKENS", "allocate_bits", "calibrate_outputs", "calibration_folder"]

Array = np.ndarray[Any, Any]

DEFAULT_TOKENS = 16384
_WINDOW = 512
_MEASURED, _MEASURED_WINDOW = 8, 256  # sequences and their length for sensitivities
_DISTILLED = 4  # times as many tokens as calibration


def calibration_folder(destination: Path) -> Path:
    """Where a conversion's calibration keeps its work, beside the destination."""
    return destination.parent / f".{destination.name}.calibration"


def calibrate_outputs(
    checkpoint: Checkpoint,
    outputs: Sequence[Output],
    destination: Path,
    *,
    texts: Sequence[str] = (),
    tokens: int | None = None,
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
        texts: files; none: the texts of the Python installation.
        tokens: to calibrate with.
        distill: tune scales and biases afterwards, on four times as many tokens.
        max_context: longest sequence to run.
        trust_remote_code: allow the checkpoint's own code.
        progress: listener.

    Raises:
        OptionError: the checkpoint has no tokenizer, or the texts are too short.
        UnsupportedError: layers of this model cannot be run on their own.
    """
    length = min(_WINDOW, max_context or _WINDOW, _context(checkpoint.config))
    count = tokens or DEFAULT_TOKENS
    ids = _ids(checkpoint, texts, count, length, trust_remote_code)
    more = None
    if distill:
        more = _ids(checkpoint, texts, _DISTILLED * count, length, trust_remote_code)
    wanted = sum(o.expr.nbytes for o in outputs if o.scheme is not None and o.packed is None)
    title = f"Calibrating with {ids.size:,} tokens"
    if more is not None:
        title += f", distilling with {more.size:,}"
        wanted += more.size
    with progress.stage(title, wanted) as advance:
        return calibrate(
            checkpoint,
            outputs,
            ids,
            calibration_folder(destination),
            settings=Settings(),
            trust_remote_code=trust_remote_code,
            distillation_ids=more,
            progress=advance,
        )


def allocate_bits(
    checkpoint: Checkpoint,
    outputs: Sequence[Output],
    base: Scheme,
    target: float,
    *,
    texts: Sequence[str] = (),
    max_context: int | None = None,
    trust_remote_code: bool = False,
) -> Allocation:
    """Choose the bits of every quantized module, for a number of bits per weight of the whole.

    Args:
        checkpoint: the source.
        outputs: of a plan.
        base: affine format of the modules that may get other bits; its group size is kept.
        target: stored bits for each weight of the model, unquantized tensors included.
        texts: files to measure with; none: the texts of the Python installation.
        max_context: longest sequence to run.
        trust_remote_code: allow the checkpoint's own code.

    Raises:
        OptionError: the target is too small for this model.
        UnsupportedError: layers of this model cannot be run on their own.
    """
    import torch

    from torch2mlx.calibration.blocks import Blocks

    length = min(_MEASURED_WINDOW, max_context or _WINDOW, _context(checkpoint.config))
    ids = _ids(checkpoint, texts, _MEASURED * length, length, trust_remote_code)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    blocks = Blocks(
        checkpoint.config,
        checkpoint.state,
        checkpoint.source,
        device,
        checkpoint.folder,
        trust_remote_code,
    )
    wanted = [o for o in outputs if o.scheme == base and o.packed is None]
    choices = sensitivities(blocks, wanted, find_head(outputs), ids)
    chosen = {o.name for o in wanted}
    fixed = sum(spec.nbytes for o in outputs if o.name not in chosen for spec in o.specs)
    weights = sum(o.expr.size for o in outputs)
    return allocate(choices, int(target * weights / 8) - fixed)


def _ids(
    checkpoint: Checkpoint, texts: Sequence[str], tokens: int, length: int, trust: bool
) -> Array:
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
        rendered = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
        documents.append("\n\n".join([text, *rendered] if text else rendered))
    return calibration_ids(tokenizer, [d for d in documents if d], tokens, length)


def _context(config: Mapping[str, Any]) -> int:
    """The longest sequence that the config allows."""
    from torch2mlx.verification.layers import text_part

    for part in (text_part(config), config):
        for key in ("max_position_embeddings", "n_positions", "max_sequence_length"):
            if isinstance(part.get(key), int):
                return int(part[key])
    return _WINDOW
