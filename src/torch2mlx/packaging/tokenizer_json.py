"""tokenizer.json for checkpoints that have only the files of older libraries.

Programs in Swift read no other; transformers builds it from SentencePiece's tokenizer.model, from
vocab.json with merges.txt, and from tiktoken's ranks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch2mlx.errors import SourceError
from torch2mlx.packaging.tokenizer import load_tokenizer
from torch2mlx.sources.strings import HARD_STRINGS

__all__ = ["write_tokenizer_json"]

_FILE = "tokenizer.json"


def write_tokenizer_json(tokenizer: Any, folder: Path, trust_remote_code: bool = False) -> str:
    """Add tokenizer.json to a folder that lacks it, if that tokenizes as the other files do.

    Args:
        tokenizer: what transformers makes of the folder's files.
        folder: of the output.
        trust_remote_code: as for `load_tokenizer`.

    Returns:
        a note for the user; "" where the file was there.
    """
    path = folder / _FILE
    if path.exists():
        return ""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return (
            f"no {_FILE}: transformers computes {type(tokenizer).__name__} in Python alone; "
            "programs in Swift cannot use this tokenizer"
        )
    backend.save(str(path))
    try:
        built = load_tokenizer(folder, trust_remote_code)
        differs = [t for t in HARD_STRINGS if _ids(built, t) != _ids(tokenizer, t)]
    except SourceError as error:
        differs = [str(error)]
    if differs:
        path.unlink()
        return (
            f"no {_FILE}: what transformers builds tokenizes otherwise ({differs[0][:40]!r}); "
            "programs in Swift cannot use this tokenizer"
        )
    told = f"{_FILE} was built from the checkpoint's tokenizer files, for programs that need it"
    return told + _unlike_sentencepiece(backend, folder / "tokenizer.model")


def _unlike_sentencepiece(backend: Any, model: Path) -> str:
    """On which texts transformers' tokenizer differs from the SentencePiece model that it reads."""
    if not model.is_file():
        return ""
    from sentencepiece import SentencePieceProcessor

    try:
        original = SentencePieceProcessor(model_file=str(model))
    except RuntimeError:  # tiktoken's ranks, or another kind
        return ""
    texts = HARD_STRINGS[:-1]
    differs = [
        t for t in texts if backend.encode(t, add_special_tokens=False).ids != original.encode(t)
    ]
    if not differs:
        return ""
    return (
        f"; transformers tokenizes {len(differs)} of {len(texts)} hard texts otherwise than "
        f"{model.name} itself does, such as {differs[0][:20]!r}: the output does as transformers"
    )


def _ids(tokenizer: Any, text: str) -> Any:
    try:
        return tokenizer.encode(text)
    except Exception as error:  # half a surrogate pair: both must refuse it
        return type(error)
