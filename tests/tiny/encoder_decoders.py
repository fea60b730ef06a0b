"""Tiny encoder-decoders of transformers, with what text and sound need to go in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from torch2mlx.verification.twin import disturb

__all__ = ["WORDS", "add_processor", "add_tokenizer", "t5", "whisper"]

WORDS = 60


def t5(words: int = WORDS) -> Any:
    """Text to text; the same in every run."""
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
        "vocab_size": words, "decoder_start_token_id": 0,
    }  # fmt: skip
    model: Any = T5ForConditionalGeneration(T5Config(**config))
    return _sharpened(model)


def whisper(positions: int = 20, words: int = WORDS) -> Any:
    """Sound to text, the same in every run; `positions` are half the frames of a sound."""
    torch.manual_seed(0)
    sides: dict[str, Any] = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {"layers": 2, "attention_heads": 4, "ffn_dim": 48}.items()
    }
    model: Any = WhisperForConditionalGeneration(
        WhisperConfig(
            **sides, d_model=32, vocab_size=words, num_mel_bins=8, max_source_positions=positions,
            max_target_positions=128, decoder_start_token_id=1, bos_token_id=0, eos_token_id=2,
            pad_token_id=0, suppress_tokens=None, begin_suppress_tokens=None,
        )
    )  # fmt: skip
    return _sharpened(model)


def _sharpened(model: Any) -> Any:
    """Its tokens differ from one another, and none ends a text."""
    disturb(model)
    model.generation_config.eos_token_id = None
    model.generation_config.max_length = None
    return model.eval()


def add_tokenizer(folder: Path) -> None:
    """A word for each token."""
    words = {f"w{i}": i for i in range(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    kind: Any = PreTrainedTokenizerFast
    made = kind(tokenizer_object=tokenizer, unk_token="w3")
    made.save_pretrained(folder)


def add_processor(folder: Path) -> None:
    """What turns a sound of a second into features of `whisper(50)`."""
    WhisperFeatureExtractor(feature_size=8, chunk_length=1).save_pretrained(folder)
