"""Tokenizers of original releases against sentencepiece, tiktoken and mistral-common."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest
from releases import byte_ranks, tekken_content, tiktoken_file

from torch2mlx.errors import SourceError
from torch2mlx.sources.original.tokenizer import ConvertedTokenizer, find_tokenizer
from torch2mlx.sources.strings import HARD_STRINGS


def loaded(converted):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(converted.folder))


def shipped(name):
    mistral_common = pytest.importorskip("mistral_common")
    return Path(mistral_common.__file__).parent / "data" / name


def test_sentencepiece_of_mistral():
    import sentencepiece

    file = shipped("mistral_instruct_tokenizer_240323.model.v3")
    tokenizer = loaded(ConvertedTokenizer(file))
    original = sentencepiece.SentencePieceProcessor(model_file=str(file))
    assert len(tokenizer) == original.vocab_size() == 32768
    for text in HARD_STRINGS[:-1]:
        ids = original.encode(text)
        assert tokenizer.encode(text) == [1, *ids]
        assert tokenizer.decode(ids) == original.decode(ids)
    assert tokenizer.convert_tokens_to_ids("[INST]") == original.piece_to_id("[INST]")


@pytest.mark.slow  # 150,000 tokens
def test_tekken(tmp_path):
    pytest.importorskip("mistral_common")
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    file = shipped("tekken_240911.json")
    shutil.copy(file, tmp_path / "tekken.json")
    tokenizer = loaded(ConvertedTokenizer(tmp_path / "tekken.json"))
    original = Tekkenizer.from_file(file)
    assert len(tokenizer) == original.n_words
    for text in HARD_STRINGS[:-1]:
        ids = original.encode(text, bos=False, eos=False)
        assert tokenizer.encode(text) == [1, *ids]
        assert tokenizer.decode(ids) == original.decode(ids)


def test_tiktoken_of_llama_3(tmp_path):
    import tiktoken

    from torch2mlx.sources.original import tokenizer as module

    file = tmp_path / "tokenizer.model"
    tiktoken_file(file)
    tokenizer = loaded(ConvertedTokenizer(file, newer=True))
    original = tiktoken.Encoding(
        "x", pat_str=module._LLAMA3_PATTERN,
        mergeable_ranks={t: i for i, t in enumerate(byte_ranks())}, special_tokens={},
    )  # fmt: skip
    count = len(byte_ranks())
    assert len(tokenizer) == count + 256
    for text in HARD_STRINGS[:-1]:
        ids = original.encode_ordinary(text)
        assert tokenizer.encode(text)[1:] == ids
        for cut in range(1, min(len(ids), 12)):  # characters cut in the middle
            assert tokenizer.decode(ids[:cut]) == original.decode(ids[:cut])
    special = {"<|begin_of_text|>": 0, "<|eot_id|>": 9, "<|python_tag|>": 10, "<|eom_id|>": 8}
    for name, at in special.items():
        assert tokenizer.convert_tokens_to_ids(name) == count + at


def test_tekken_layout(tmp_path):
    content = tekken_content()
    file = tmp_path / "tekken.json"
    file.write_text(json.dumps(content))
    tokenizer = loaded(ConvertedTokenizer(file))
    assert len(tokenizer) == 280
    assert tokenizer.convert_tokens_to_ids(["<s>", "[INST]", "<SPECIAL_19>"]) == [1, 3, 19]
    assert tokenizer.encode("the a") == [1, 20 + 257, 20 + 32, 20 + 97]
    content["vocab"][5]["token_bytes"] = "!"
    file.write_text(json.dumps(content))
    with pytest.raises(SourceError, match=r"tekken\.json: cannot be converted"):
        _ = ConvertedTokenizer(file).folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": {"default_num_special_tokens": 10**12}}, "special tokens"),
        ({"config": {"pattern": "(a|aa|aaa)+$"}}, "tokenizer.json"),
        ({"vocab": [{"rank": 7, "token_bytes": "YQ=="}] * 2}, "each once"),
    ],
    ids=["count", "pattern", "ranks"],
)
def test_tekken_that_would_never_end(tmp_path, change, words):
    tokens = [
        {"rank": i, "token_bytes": base64.b64encode(t).decode()} for i, t in enumerate(byte_ranks())
    ]
    config = {"pattern": r"\w+|\W+", "default_num_special_tokens": 4, "default_vocab_size": 266}
    content = {"config": config | change.get("config", {}), "vocab": change.get("vocab", tokens)}
    (tmp_path / "tekken.json").write_text(json.dumps(content))
    with pytest.raises(SourceError, match=words):
        ConvertedTokenizer(tmp_path / "tekken.json").folder  # noqa: B018


def test_sentencepiece_that_is_none(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\xff\xff\xff\x7f" + bytes(99))
    with pytest.raises(SourceError, match="cannot be converted"):
        ConvertedTokenizer(tmp_path / "tokenizer.model").folder  # noqa: B018


def test_the_newest_version_is_taken_and_copies_are_none(tmp_path: Path) -> None:
    assert find_tokenizer(tmp_path) is None
    for name in (
        "tokenizer.model",
        "tokenizer.model.v3",
        "tokenizer.model.v11",
        "tokenizer.model.x",
    ):
        (tmp_path / name).touch()
    found = find_tokenizer(tmp_path)
    assert found is not None
    assert found.name == "tokenizer.model.v11"
