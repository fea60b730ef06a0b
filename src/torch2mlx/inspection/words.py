"""Health of a tokenizer, and the licence, from small files alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch2mlx.errors import SourceError
from torch2mlx.planning.plan import is_token_embedding
from torch2mlx.sources.base import Checkpoint
from torch2mlx.sources.companions import CARD
from torch2mlx.sources.gguf.source import GGUFSource
from torch2mlx.sources.local_files import read_json_object, read_small
from torch2mlx.sources.remote.snapshot import FetchedFiles

__all__ = [
    "find_licence",
    "has_template",
    "has_tokenizer",
    "tokenizer_faults",
    "too_large_to_fetch",
]

_FETCHED = 16 << 20  # bytes of a file that is worth fetching to be looked at
_LOOKED_AT = ("tokenizer_config.json", "tokenizer.json")
_LICENCE_LINE = re.compile(r"^license:\s*[\"']?([\w.\-+ ]{1,60})", re.MULTILINE)


def has_tokenizer(checkpoint: Checkpoint) -> bool:
    """Whether there is a tokenizer, without loading it."""
    if isinstance(checkpoint.source, GGUFSource):  # whose tokenizer files are made on demand
        return "tokenizer.ggml.tokens" in checkpoint.source.metadata
    names = checkpoint.tokenizer_files
    return any("tokenizer" in n or "vocab" in n or n.endswith(".model") for n in names)


def has_template(checkpoint: Checkpoint) -> bool:
    """Whether there is a chat template."""
    if isinstance(checkpoint.source, GGUFSource):
        return "tokenizer.chat_template" in checkpoint.source.metadata
    files = checkpoint.tokenizer_files
    return any("chat_template" in n for n in files) or any(
        "chat_template" in read_small(files[n]).decode(errors="replace")
        for n in files
        if n.endswith("_config.json") and _worth_fetching(checkpoint, n) and files[n].exists()
    )


def tokenizer_faults(checkpoint: Checkpoint) -> Iterator[str]:
    """What is wrong with the tokenizer's files, which are fetched for it unless they are large."""
    if isinstance(checkpoint.source, GGUFSource):
        return
    if not has_tokenizer(checkpoint):
        yield "no tokenizer files: the result cannot generate text or chat"
        return
    settings = _read(checkpoint, "tokenizer_config.json")
    if isinstance(settings, str):
        yield settings
        settings = {}
    if settings.get("auto_map"):
        yield (
            "the tokenizer brings its own Python code, which needs --trust-remote-code wherever "
            "the model is used"
        )
    if not has_template(checkpoint):
        yield (
            "no chat template: chats are written without marks of who speaks; a model that was "
            "trained on chats answers badly, one that was not lacks nothing"
        )
    ends = (checkpoint.config.get("eos_token_id"), checkpoint.generation_config.get("eos_token_id"))
    if settings and all(end is None for end in (*ends, settings.get("eos_token"))):
        yield "nothing names a token that ends a text: generation never stops by itself"
    if "tokenizer.json" in checkpoint.tokenizer_files and _worth_fetching(
        checkpoint, "tokenizer.json"
    ):
        yield from _vocabulary_faults(checkpoint, settings)


def too_large_to_fetch(checkpoint: Checkpoint) -> Iterator[str]:
    """What of a remote tokenizer was not looked at."""
    for name in _LOOKED_AT:
        if name in checkpoint.tokenizer_files and not _worth_fetching(checkpoint, name):
            yield f"{name} is large: not fetched to be looked at, which conversion does"


def _worth_fetching(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a file is here, or small enough to be fetched."""
    files = checkpoint.tokenizer_files
    return not isinstance(files, FetchedFiles) or files.size(name) <= _FETCHED


def _vocabulary_faults(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Iterator[str]:
    found = _read(checkpoint, "tokenizer.json")
    if isinstance(found, str):
        yield found
        return
    model = found.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict | list) or not vocabulary:
        yield "tokenizer.json has no vocabulary: it is incomplete"
        return
    if isinstance(vocabulary, dict):
        numbers = {word: n for word, n in vocabulary.items() if isinstance(n, int)}
    else:  # of unigram models: pairs of piece and score
        numbers = {
            str(pair[0]): n for n, pair in enumerate(vocabulary) if isinstance(pair, list) and pair
        }
    for added in found.get("added_tokens") or ():
        if isinstance(added, dict) and isinstance(added.get("id"), int):
            numbers[str(added.get("content"))] = added["id"]
    state = checkpoint.state.items()
    rows = next((expr.shape[0] for name, expr in state if is_token_embedding(name)), None)
    highest = max(numbers.values(), default=0)
    if rows is not None and highest >= rows:
        yield (
            f"the tokenizer has ids up to {highest}, the embedding {rows} rows: the tokenizer is "
            "of another model, or the embedding was not resized"
        )
    end = settings.get("eos_token")
    end = end.get("content") if isinstance(end, dict) else end
    if isinstance(end, str) and end not in numbers:
        yield f"tokenizer_config.json ends texts with {end!r}, which is not in the vocabulary"


def _read(checkpoint: Checkpoint, name: str) -> dict[str, Any] | str:
    """A JSON object, {} where there is none or it is too large, or what is wrong with it."""
    if name not in checkpoint.tokenizer_files or not _worth_fetching(checkpoint, name):
        return {}
    path = checkpoint.tokenizer_files[name]
    if not path.exists():
        return {}
    try:
        return read_json_object(path)
    except SourceError as error:
        return str(error).replace(str(path), name)


def find_licence(checkpoint: Checkpoint) -> str | None:
    """What the model card's header says, or the name of a licence file; None: neither is here."""
    if isinstance(checkpoint.source, GGUFSource):
        named = checkpoint.source.metadata.get("general.license")
        return str(named)[:60] if named else None
    card = checkpoint.folder / CARD if checkpoint.card is None else checkpoint.card()
    if card.is_file():
        text = read_small(card, stop=4096).decode(errors="replace")
        head = text.split("---", 2)[1] if text.startswith("---") and text.count("---") > 1 else ""
        found = _LICENCE_LINE.search(head)
        if found is not None:
            return found[1].strip()
    files = sorted(n for n in checkpoint.tokenizer_files if n.upper().startswith(("LICEN", "COPY")))
    return files[0] if files else None
