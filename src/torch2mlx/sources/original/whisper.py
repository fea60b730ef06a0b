"""OpenAI's Whisper files: a dict of `dims` and `model_state_dict`, under transformers' names.

https://github.com/openai/whisper, model.py and tokenizer.py.  The vocabulary is not in the file;
the numbers of its special tokens follow from its size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch2mlx.errors import SourceError, UnsupportedError
from torch2mlx.planning.expressions import Expr, Source
from torch2mlx.sources.base import Checkpoint
from torch2mlx.sources.torch_zip import TorchZipSource, read_object

__all__ = ["is_whisper", "open_whisper"]

_SUFFIXES = (".pt", ".pth", ".bin")
_DIMENSIONS = (
    "n_mels", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer",
    "n_vocab", "n_text_ctx", "n_text_state", "n_text_head", "n_text_layer",
)  # fmt: skip
_NAMES = {
    "decoder.token_embedding.weight": "decoder.embed_tokens.weight",
    "encoder.positional_embedding": "encoder.embed_positions.weight",
    "decoder.positional_embedding": "decoder.embed_positions.weight",
    "encoder.ln_post": "encoder.layer_norm",
    "decoder.ln": "decoder.layer_norm",
    "encoder.conv1": "encoder.conv1",
    "encoder.conv2": "encoder.conv2",
}
_PARTS = {
    "attn_ln": "self_attn_layer_norm",
    "cross_attn_ln": "encoder_attn_layer_norm",
    "mlp_ln": "final_layer_norm",
    "mlp.0": "fc1",
    "mlp.2": "fc2",
    **{
        f"{theirs}.{short}": f"{ours}.{long}"
        for theirs, ours in (("attn", "self_attn"), ("cross_attn", "encoder_attn"))
        for short, long in (
            ("query", "q_proj"),
            ("key", "k_proj"),
            ("value", "v_proj"),
            ("out", "out_proj"),
        )
    },
}
_BLOCK = re.compile(r"(encoder|decoder)\.blocks\.(\d+)\.(.+)\.(weight|bias)")
_COMPUTED = ("decoder.mask", "alignment_heads")  # buffers of older versions

# Special tokens in their order: end, start, languages, translate, transcribe, start of LM, start of
# previous text, no speech, no timestamps, then 1501 timestamps.
_BEYOND_LANGUAGES = 8 + 1501
_VOCABULARIES = {51864: (50256, 99), 51865: (50257, 99), 51866: (50257, 100)}
"""Size of a vocabulary → tokens of text, languages; the first is for English alone."""


def is_whisper(path: Path) -> bool:
    """Whether a file is one of OpenAI's, told by its pickle, which is not run."""
    if path.suffix.lower() not in _SUFFIXES or not path.is_file():
        return False
    try:
        found = read_object(path)
    except SourceError:  # told by whoever opens it as weights
        return False
    return (
        isinstance(found, Mapping)
        and isinstance(found.get("dims"), Mapping)
        and isinstance(found.get("model_state_dict"), Mapping)
        and "n_mels" in found["dims"]
    )


def open_whisper(location: str, path: Path) -> Checkpoint:
    """Open OpenAI's file as the checkpoint that transformers would have.

    Raises:
        SourceError: dimensions or tensors are missing, or not those of a Whisper.
        UnsupportedError: a vocabulary of another size than OpenAI's.
    """
    dims = read_object(path)["dims"]
    wrong = [n for n in _DIMENSIONS if not (isinstance(dims.get(n), int) and dims[n] > 0)]
    if wrong:
        raise SourceError(
            f"{path}: dims lacks {', '.join(wrong)}: not a whole file of OpenAI's; download it "
            "again"
        )
    if dims["n_audio_state"] != dims["n_text_state"]:
        raise UnsupportedError(
            f"{path}: the encoder is {dims['n_audio_state']} wide, the decoder "
            f"{dims['n_text_state']}; transformers' Whisper has one width"
        )
    source = TorchZipSource([path])
    stored = {n: Source(n, i.dtype, i.shape) for n, i in source.tensors.items()}
    state = _to_transformers(path, stored)
    generation = _generation(path, dims["n_vocab"])
    _check_sizes(path, dims, stored)
    return Checkpoint(
        location=location,
        folder=path.parent,
        kind="original",
        config=_config(dims),
        source=source,
        state=state,
        generation_config=generation,
        notes=(
            "OpenAI's Whisper; config.json was made from dims",
            "the file holds no vocabulary: take tokenizer.json and preprocessor_config.json of "
            "the Hugging Face version",
        ),
    )


def _check_sizes(path: Path, dims: Mapping[str, int], state: Mapping[str, Expr]) -> None:
    """Raise SourceError where dimensions are not those of the tensors; before a model is built."""
    width = dims["n_audio_state"]
    shapes = {
        "encoder.conv1.weight": (width, dims["n_mels"], 3),
        "encoder.positional_embedding": (dims["n_audio_ctx"], width),
        "decoder.positional_embedding": (dims["n_text_ctx"], width),
        "decoder.token_embedding.weight": (dims["n_vocab"], width),
    }
    wrong = [
        f"{name} {list(state[name].shape) if name in state else 'missing'} for {list(shape)}"
        for name, shape in shapes.items()
        if name not in state or state[name].shape != shape
    ]
    for side, part in (("encoder", "audio"), ("decoder", "text")):
        blocks = {m[2] for n in state if (m := _BLOCK.fullmatch(n)) and m[1] == side}
        if len(blocks) != dims[f"n_{part}_layer"]:
            wrong.append(f"{len(blocks)} blocks of the {side} for {dims[f'n_{part}_layer']}")
        if width % dims[f"n_{part}_head"]:
            wrong.append(f"{dims[f'n_{part}_head']} heads of the {side} do not divide {width}")
    if wrong:
        raise SourceError(
            f"{path}: dims are not those of its tensors: {'; '.join(wrong)[:400]}; download it "
            "again"
        )


def _to_transformers(path: Path, state: Mapping[str, Expr]) -> dict[str, Expr]:
    result: dict[str, Expr] = {}
    unknown = []
    for name, expr in state.items():
        new = _renamed(name)
        if new is not None:
            result[f"model.{new}"] = expr
        elif name not in _COMPUTED:
            unknown.append(f"{name} {list(expr.shape)}")
    if unknown:
        raise SourceError(
            f"{path}: {len(unknown)} tensors are not those of a Whisper: {', '.join(unknown[:6])}"
        )
    return result


def _renamed(name: str) -> str | None:
    block = _BLOCK.fullmatch(name)
    if block is not None:
        part = _PARTS.get(block[3])
        return None if part is None else f"{block[1]}.layers.{block[2]}.{part}.{block[4]}"
    if name in _NAMES:
        return _NAMES[name]
    stem, _, leaf = name.rpartition(".")
    return f"{_NAMES[stem]}.{leaf}" if stem in _NAMES and leaf in ("weight", "bias") else None


def _config(dims: Mapping[str, int]) -> dict[str, Any]:
    width = dims["n_audio_state"]
    return {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "is_encoder_decoder": True,
        "vocab_size": dims["n_vocab"],
        "num_mel_bins": dims["n_mels"],
        "d_model": width,
        "encoder_layers": dims["n_audio_layer"],
        "encoder_attention_heads": dims["n_audio_head"],
        "encoder_ffn_dim": 4 * width,
        "decoder_layers": dims["n_text_layer"],
        "decoder_attention_heads": dims["n_text_head"],
        "decoder_ffn_dim": 4 * width,
        "max_source_positions": dims["n_audio_ctx"],
        "max_target_positions": dims["n_text_ctx"],
        "tie_word_embeddings": True,
    }


def _generation(path: Path, vocabulary: int) -> dict[str, Any]:
    """What transformers' generation_config.json says, from the order of the special tokens."""
    if vocabulary not in _VOCABULARIES:
        raise UnsupportedError(
            f"{path}: a vocabulary of {vocabulary}; the special tokens are known of "
            f"{', '.join(map(str, _VOCABULARIES))}: convert the Hugging Face version"
        )
    from transformers.models.whisper.configuration_whisper import (
        NON_SPEECH_TOKENS,
        NON_SPEECH_TOKENS_MULTI,
    )
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    end, languages = _VOCABULARIES[vocabulary]
    assert end + languages + _BEYOND_LANGUAGES == vocabulary
    start = end + 1
    translate = start + 1 + languages
    speech = NON_SPEECH_TOKENS if end == 50256 else NON_SPEECH_TOKENS_MULTI
    settings: dict[str, Any] = {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": start,
        # Start, both tasks, start of LM and of previous text, no speech.
        "suppress_tokens": [
            *(token for token in speech if token < end), start, *range(translate, translate + 5),
        ],
        "begin_suppress_tokens": [220, end],
        "no_timestamps_token_id": translate + 5,
    }  # fmt: skip
    if end == 50256:
        return settings | {"is_multilingual": False}
    return settings | {
        "is_multilingual": True,
        "lang_to_id": {
            f"<|{code}|>": start + 1 + i for i, code in enumerate(list(LANGUAGES)[:languages])
        },
        "task_to_id": {"translate": translate, "transcribe": translate + 1},
    }
