"""Tokenizers of original releases as tokenizer.json, proven equal to the library that reads them.

| file | library | what it says |
|---|---|---|
| tokenizer.model (SentencePiece) | sentencepiece | pieces with scores, bytes as a fallback |
| tokenizer.model (lines of base64) | tiktoken | Llama 3's ranks; Meta's code has the pattern |
| tekken.json | tiktoken | ranks, pattern and control tokens |
"""

from __future__ import annotations

import base64
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch2mlx.errors import SourceError
from torch2mlx.packaging.preflight import require_harmless
from torch2mlx.sources.local_files import read_json_object, read_small
from torch2mlx.sources.strings import HARD_STRINGS

__all__ = ["ConvertedTokenizer", "find_tokenizer"]

_TEKKEN = "tekken.json"
_VERSION = re.compile(r"tokenizer\.model(?:\.v(\d+)\w*)?")
_MADE = ("tokenizer.json", "tokenizer_config.json")
# Of Meta's reference code for Llama 3 (llama3/tokenizer.py).
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_TOKENS = (
    "<|begin_of_text|>", "<|end_of_text|>", None, None, None, None, "<|start_header_id|>",
    "<|end_header_id|>", None, "<|eot_id|>",
)  # fmt: skip
_LLAMA31_TOKENS = (
    "<|begin_of_text|>", "<|end_of_text|>", None, None, "<|finetune_right_pad_id|>", None,
    "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>",
)  # fmt: skip
_LLAMA3_RESERVED = 256


@dataclass(frozen=True)
class _Built:
    """A tokenizer of `tokenizers`, and the original's function from text to ids."""

    tokenizer: Any
    encode: Callable[[str], list[int]]
    settings: dict[str, Any]


_MOST_SPECIAL = 100_000
_LONGEST = 4096  # bytes of a token; real ones have up to 256


class ConvertedTokenizer(Mapping[str, Path]):
    """tokenizer.json and tokenizer_config.json, made when they are first asked for.

    Args:
        file: tokenizer.model (or .vN) or tekken.json.
        newer: of a tiktoken file: it has the control tokens of Llama 3.1.
        documents: files that are copied as well.

    Raises:
        SourceError: on first use: the file is damaged, or the result gives other ids.
    """

    def __init__(
        self, file: Path, newer: bool = False, documents: Mapping[str, Path] | None = None
    ) -> None:
        self._file = file
        self._documents = dict(documents or {})
        self._newer = newer
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def folder(self) -> Path:
        """Where the files lie, for as long as this object lives."""
        if self._folder is None:
            folder = tempfile.TemporaryDirectory(prefix="torch2mlx-tokenizer-")
            try:
                built = _build(self._file, self._newer)
            except Exception as error:  # protobuf and tokenizers have kinds of their own
                raise SourceError(
                    f"{self._file}: cannot be converted to tokenizer.json: {error}; get another "
                    "copy of it, or the tokenizer files of the Hugging Face version"
                ) from error
            root = Path(folder.name)
            built.tokenizer.save(str(root / "tokenizer.json"))
            (root / "tokenizer_config.json").write_text(
                json.dumps(built.settings, ensure_ascii=False, indent=2), encoding="utf-8"
            )
            require_harmless(root)  # a pattern may take forever on the texts that follow
            _require_equal(self._file, built)
            self._folder = folder
        return Path(self._folder.name)

    def __getitem__(self, name: str) -> Path:
        return self.folder / name if name in _MADE else self._documents[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*_MADE, *self._documents))

    def __len__(self) -> int:
        return len(_MADE) + len(self._documents)


def find_tokenizer(folder: Path) -> Path | None:
    """The tokenizer file of a release, tekken first; the newest of several versions."""
    if (folder / _TEKKEN).is_file():
        return folder / _TEKKEN
    named = {p: _VERSION.fullmatch(p.name) for p in sorted(folder.glob("tokenizer.model*"))}
    versions = {path: int(found[1] or 0) for path, found in named.items() if found}
    return max(versions, key=lambda path: versions[path], default=None)


def _require_equal(file: Path, built: _Built) -> None:
    for text in HARD_STRINGS:
        try:
            expected = built.encode(text)
            found = built.tokenizer.encode(text, add_special_tokens=False).ids
        except UnicodeEncodeError:  # half of a surrogate pair
            continue
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of Rust is no Exception
            raise SourceError(
                f"{file}: fails on {text[:40]!r}: {error}; get another copy of it"
            ) from error
        if found != expected:
            raise SourceError(
                f"{file}: as tokenizer.json it gives {found[:12]} for {text[:40]!r}, the original "
                f"{expected[:12]}; use the tokenizer files of the Hugging Face version"
            )


def _build(file: Path, newer: bool) -> _Built:
    if file.name == _TEKKEN:
        return _from_tekken(read_json_object(file))
    data = read_small(file)
    first = data[: data.find(b"\n")].split()
    if len(first) == 2 and first[1].isdigit():
        return _from_ranks(data, newer)
    return _from_sentencepiece(file)


def _from_ranks(data: bytes, newer: bool) -> _Built:
    ranks = {}
    for line in data.splitlines():
        if line:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
    named = _LLAMA31_TOKENS if newer else _LLAMA3_TOKENS
    special: dict[str, int] = {}
    reserved = 0
    for i in range(_LLAMA3_RESERVED):
        name = named[i] if i < len(named) else None
        if name is None:
            name, reserved = f"<|reserved_special_token_{reserved}|>", reserved + 1
        special[name] = len(ranks) + i
    return _byte_level(
        ranks, 0, _LLAMA3_PATTERN, special, bos="<|begin_of_text|>", eos="<|end_of_text|>"
    )


def _from_tekken(content: Mapping[str, Any]) -> _Built:
    config = content["config"]
    count = int(config["default_num_special_tokens"])
    kept = int(config["default_vocab_size"]) - count
    if not 0 <= count <= _MOST_SPECIAL or kept < 0:
        raise ValueError(f"{count:,} special tokens of {kept + count:,}")
    ranks = {
        base64.b64decode(t["token_bytes"], validate=True): int(t["rank"])
        for t in content["vocab"][:kept]
    }
    listed = content.get("special_tokens") or [
        {"rank": i, "token_str": name} for i, name in enumerate(_TEKKEN_TOKENS)
    ]
    named = {int(t["rank"]): str(t["token_str"]) for t in listed}
    special = {named.get(i, f"<SPECIAL_{i}>"): i for i in range(count)}
    return _byte_level(ranks, count, str(config["pattern"]), special, bos="<s>", eos="</s>")


# Of files of version v3, which do not list them.
_TEKKEN_TOKENS = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]",
    "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
)  # fmt: skip


def _byte_level(
    ranks: Mapping[bytes, int],
    offset: int,
    pattern: str,
    special: Mapping[str, int],
    *,
    bos: str,
    eos: str,
) -> _Built:
    """Byte-level BPE by ranks, whose ids are ranks + offset."""
    import tiktoken
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
    )
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError("its ranks are not 0, 1, 2 ..., each once")
    _require_short(ranks)
    letters = bytes_to_unicode()  # type: ignore[no-untyped-call]
    spelled = {token: "".join(letters[b] for b in token) for token in ranks}
    merges = sorted(
        (rank, ranks[token[:i]], ranks[token[i:]], token[:i], token[i:])
        for token, rank in ranks.items()
        for i in range(1, len(token))
        if token[:i] in ranks and token[i:] in ranks
    )
    vocabulary = {name: i for name, i in special.items() if offset} | {
        spelled[token]: rank + offset for token, rank in ranks.items()
    }
    tokenizer = Tokenizer(
        models.BPE(vocabulary, [(spelled[m[3]], spelled[m[4]]) for m in merges], ignore_merges=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False, special=True) for name in special]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, special[bos])]
    )
    original = tiktoken.Encoding(
        "original", pat_str=pattern, mergeable_ranks=dict(ranks), special_tokens={}
    )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos,
        "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    return _Built(tokenizer, lambda text: [i + offset for i in _encoded(original, text)], settings)


def _require_short(tokens: Iterable[bytes | str]) -> None:
    """Every place of a token is tried as the border of a merge."""
    longest = max(map(len, tokens), default=0)
    if longest > _LONGEST:
        raise ValueError(f"a token of {longest:,} bytes; at most {_LONGEST:,} are expected")


def _encoded(encoding: Any, text: str) -> list[int]:
    text.encode()  # half of a surrogate pair: tiktoken would put another character there
    ids: list[int] = encoding.encode_ordinary(text)
    return ids


def _from_sentencepiece(file: Path) -> _Built:
    import sentencepiece
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers.convert_slow_tokenizer import import_protobuf

    proto = import_protobuf().ModelProto.FromString(read_small(file))  # type: ignore[no-untyped-call]
    spec = proto.normalizer_spec
    if proto.trainer_spec.model_type != 2 or spec.precompiled_charsmap:
        raise ValueError("expected a SentencePiece model of kind BPE that does not normalise text")
    if spec.remove_extra_whitespaces or not spec.escape_whitespaces:
        raise ValueError("expected a SentencePiece model that keeps white space")
    pieces = [piece.piece for piece in proto.pieces]
    _require_short(pieces)
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    normal = {p.piece for p in proto.pieces if p.type == 1}
    scores = {piece: proto.pieces[i].score for piece, i in vocabulary.items()}
    merges = sorted(
        (-scores[piece], vocabulary[piece[:i]], vocabulary[piece[i:]], piece[:i], piece[i:])
        for piece in normal
        for i in range(1, len(piece))
        if piece[:i] in normal and piece[i:] in normal
    )
    names = {p.type: p.piece for p in reversed(proto.pieces)}
    unknown = names[2]
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            [(m[3], m[4]) for m in merges],
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps: list[Any] = [normalizers.Prepend("▁")] if spec.add_dummy_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(content=" ", left=1)] if spec.add_dummy_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    tokenizer.add_special_tokens(
        [
            AddedToken(p.piece, normalized=False, special=True)
            for p in proto.pieces
            if p.type in (2, 3)
        ]
    )
    tokenizer.add_tokens(
        [AddedToken(p.piece, normalized=False) for p in proto.pieces if p.type == 4]
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
    bos, eos = pieces[processor.bos_id()], pieces[processor.eos_id()]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary[bos])]
    )

    def encode(text: str) -> list[int]:
        text.encode()
        ids: list[int] = processor.encode(text)
        return ids

    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos,
        "unk_token": unknown, "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    return _Built(tokenizer, encode, settings)
