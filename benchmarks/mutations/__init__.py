"""Small valid inputs of every format that torch2mlx reads, and ways of damaging them.

A case is a number: the same number and seed give the same bytes, so a case that is found can be
named in a test.  `fuzz.py` runs many; the tests run some.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from mutations import described, documents, packed, speech, weights
from mutations.seeds import weight_seeds

__all__ = ["FORMATS", "Mutate", "format_of", "make_seeds", "mutate_case"]

Mutate = Callable[[random.Random, Path, Path], str]

FORMATS: dict[str, Mutate] = {
    "safetensors": weights.safetensors,
    "index": weights.index,
    "config": weights.config,
    "torch": weights.torch_file,
    "gguf": weights.gguf,
    "packed": packed.packed,
    "hqq": described.hqq,
    "torchao": described.torchao,
    "adapter": packed.adapter,
    "original": packed.original,
    "whisper": speech.whisper,
    "synthesizer": speech.synthesizer,
    "kokoro": speech.kokoro,
    "recipe": documents.recipe,
    "plan": documents.plan,
    "output": documents.output,
    "code": documents.code,
    "tokenizer": documents.tokenizer,
}
# A tokenizer is tried out in a process of its own, which takes seconds: one case in 69.
_TURNS = [name for name in FORMATS if name != "tokenizer"] * 4 + ["tokenizer"]


def format_of(number: int) -> str:
    """The format that case `number` damages."""
    return _TURNS[number % len(_TURNS)]


def make_seeds(root: Path) -> None:
    """Write the valid inputs; imports and uses PyTorch and MLX."""
    weight_seeds(root)
    packed.packed_seeds(root)
    described.described_seeds(root)
    speech.speech_seeds(root)
    documents.document_seeds(root)


def mutate_case(
    number: int, seed: int, seeds: Path, folder: Path, name: str | None = None
) -> tuple[str, str]:
    """Write case `number` to a folder that does not exist yet; returns its format and kind.

    Args:
        number: of the case.
        seed: of all cases.
        seeds: from `make_seeds`.
        folder: to create.
        name: of the format; None: `format_of` the number, which changes with the list of formats.
    """
    name = name or format_of(number)
    rng = random.Random(f"{seed}:{number}")
    return name, FORMATS[name](rng, seeds, folder)
