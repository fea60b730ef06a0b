"""Checkpoints without tokenizer.json get one that tokenizes as their own files do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import torch2mlx
from torch2mlx.packaging.tokenizer import check_tokenizer, copy_tokenizer_files, load_tokenizer
from torch2mlx.packaging.tokenizer_json import write_tokenizer_json
from torch2mlx.sources.companions import companion_files
from torch2mlx.sources.strings import HARD_STRINGS

TEXT = ["the sun rises and the stars go out", "naïve café 你好 😀  def f(x):\n\treturn 1"] * 20
TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}"


def described(folder: Path, **settings: Any) -> None:
    settings = {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>", **settings}
    settings["chat_template"] = TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def byte_level(folder: Path) -> None:
    """GPT-2's vocab.json and merges.txt."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        TEXT, vocab_size=288, special_tokens=["<s>", "</s>", "<unk>"], show_progress=False
    )
    tokenizer.save_model(str(folder))
    described(folder, tokenizer_class="GPT2Tokenizer")


def sentencepiece(folder: Path) -> None:
    """Llama's tokenizer.model."""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT), model_prefix=str(folder / "tokenizer"), vocab_size=330,
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    described(folder, tokenizer_class="LlamaTokenizer", legacy=False)


@pytest.mark.parametrize("write", [byte_level, sentencepiece])
def test_it_is_built_and_tokenizes_alike(write: Any, tmp_path: Path) -> None:
    source, output = tmp_path / "source", tmp_path / "output"
    source.mkdir()
    output.mkdir()
    write(source)
    (output / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 2}))
    copy_tokenizer_files(companion_files(source), output)
    note = write_tokenizer_json(load_tokenizer(output), output)
    assert "was built" in note
    assert write_tokenizer_json(load_tokenizer(output), output) == ""
    report = check_tokenizer(source, output)
    assert report.passed, report.errors
    assert report.strings > len(HARD_STRINGS)
    assert report.templates == ("default",)


def test_texts_that_sentencepiece_itself_splits_otherwise_are_told(tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer

    sentencepiece(tmp_path)
    note = write_tokenizer_json(load_tokenizer(tmp_path), tmp_path)
    built = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    original = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    unlike = [
        text
        for text in HARD_STRINGS[:-1]
        if built.encode(text, add_special_tokens=False).ids != original.encode(text)
    ]
    # transformers 5 puts no space before texts that begin with one; SentencePiece does.
    assert all(text.startswith((" ", "▁")) for text in unlike)
    assert f"transformers tokenizes {len(unlike)} of 21 hard texts otherwise" in note


def test_a_wrong_one_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    byte_level(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    sentencepiece(other)
    changed = load_tokenizer(other)
    monkeypatch.setattr(
        "torch2mlx.packaging.tokenizer_json.load_tokenizer", lambda *_, **__: changed
    )
    assert "tokenizes otherwise" in write_tokenizer_json(tokenizer, tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()
    assert "in Python alone" in write_tokenizer_json(object(), tmp_path)


def test_conversions_have_it(copied: Any, tmp_path: Path) -> None:
    folder = copied("llama")
    for path in [*folder.glob("*token*"), folder / "chat_template.jinja"]:
        path.unlink(missing_ok=True)
    byte_level(folder)
    made = torch2mlx.convert(folder, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").exists()
    assert (tmp_path / "out" / "merges.txt").read_bytes() == (folder / "merges.txt").read_bytes()
    assert made.manifest.tokenizer["passed"]
