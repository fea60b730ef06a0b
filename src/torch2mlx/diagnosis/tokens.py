"""Checks of the tokenizer: it loads, fits the embedding, and generation ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch2mlx.diagnosis.finding import Finding, Patient
from torch2mlx.packaging.stopping import end_of_turn, find_stop_ids
from torch2mlx.planning.plan import is_token_embedding

__all__ = ["CHECKS"]

_TEXTS = ("Hello, world!", "def f(x):\n    return x", "naïve café", "1234567890", "a\tb\n\nc")


def _available(patient: Patient) -> Iterator[Finding]:
    if patient.tokenizer is not None or (patient.compiled and patient.transducer is None):
        return
    reason = patient.unreadable.get("tokenizer")
    yield Finding(
        "tokenizer-broken" if reason else "tokenizer-missing",
        "generation fails before the first token",
        reason or "no tokenizer files in the folder",
        "copy tokenizer.json and tokenizer_config.json of the original model into the folder",
    )


def _rows(patient: Patient) -> Iterator[Finding]:
    if patient.tokenizer is None or patient.tensors is None:
        return
    rows = next((i.shape[0] for n, i in patient.tensors.items() if is_token_embedding(n)), None)
    used = {number for text in _TEXTS for number in patient.tokenizer.encode(text)}
    beyond = sorted(number for number in used if rows is not None and number >= rows)
    if beyond:
        yield Finding(
            "ids-beyond-embedding",
            "noise: MLX reads beyond the embedding without a word",
            f"plain text gives ids such as {beyond[-1]}, the embedding has {rows} rows",
            "the tokenizer is of another model: copy the original's",
        )


def _unknown(patient: Patient) -> Iterator[Finding]:
    tokenizer = patient.tokenizer
    unknown = getattr(tokenizer, "unk_token_id", None)
    if tokenizer is None or unknown is None:
        return
    hits = [t for t in _TEXTS if unknown in tokenizer.encode(t, add_special_tokens=False)]
    if len(hits) >= 2:
        yield Finding(
            "unknown-tokens",
            "the model does not understand plain words",
            f"the tokenizer gives its unknown token for {hits[0]!r} and {len(hits) - 1} more texts",
            "its vocabulary is incomplete: copy the original's tokenizer files",
        )


def _special(patient: Patient) -> Iterator[Finding]:
    tokenizer, config = patient.tokenizer, patient.config or {}
    if tokenizer is None:
        return
    told, own = config.get("bos_token_id"), tokenizer.bos_token_id
    if isinstance(told, int) and own is not None and told != own:
        yield Finding(
            "wrong-bos",
            "worse text, most of all on short prompts",
            f"config.json says bos_token_id {told}, the tokenizer {own} ({tokenizer.bos_token!r})",
            "set bos_token_id in config.json to the tokenizer's: --fix does",
            fix=lambda: patient.rewrite("config.json", {"bos_token_id": own}),
        )
    size = len(tokenizer)
    told_by = {
        "config.json: eos_token_id": config.get("eos_token_id"),
        "config.json: generation.ends": (patient.transducer or {}).get("ends"),
        "generation_config.json: eos_token_id": patient.generation_config.get("eos_token_id"),
    }
    for name, ids in told_by.items():
        bad = [i for i in (ids if isinstance(ids, list) else [ids]) if _outside(i, size)]
        if bad:
            yield Finding(
                "eos-outside-vocabulary",
                "generation never stops",
                f"{name}: {bad[0]} is not in the vocabulary of {size} tokens",
                "convert again" if patient.compiled else "write those that end it: --fix does",
                fix=None if patient.compiled else lambda: _write_stops(patient),
            )


def _outside(value: Any, size: int) -> bool:
    return value is not None and (type(value) is not int or not 0 <= value < size)


def _stops(patient: Patient) -> Iterator[Finding]:
    """What mlx-lm stops on must hold the token that the chat template ends a turn with."""
    if patient.tokenizer is None or patient.compiled:
        return
    last = end_of_turn(patient.tokenizer)
    config, generation = patient.config or {}, patient.generation_config
    told = generation.get("eos_token_id") or config.get("eos_token_id")
    ids = set(told if isinstance(told, list) else [told]) - {None}
    ids.add(patient.tokenizer.eos_token_id)
    if last is not None and last not in ids:
        token = patient.tokenizer.convert_ids_to_tokens(last)
        yield Finding(
            "never-stops",
            "the answer does not end: the model goes on with the user's next turn",
            f"the chat template ends a turn with {token!r} ({last}), which mlx-lm does not stop on",
            "write the ids that end a text: --fix does",
            fix=lambda: _write_stops(patient),
        )


def _write_stops(patient: Patient) -> None:
    size = len(patient.tokenizer)
    found = find_stop_ids(patient.config or {}, patient.generation_config, patient.tokenizer)
    ids = [number for number in found.ids if not _outside(number, size)]
    changes = {"eos_token_id": ids[0] if len(ids) == 1 else ids}
    patient.rewrite("config.json", changes)
    if patient.generation_config:
        patient.rewrite("generation_config.json", changes)


def _template(patient: Patient) -> Iterator[Finding]:
    tokenizer = patient.tokenizer
    if tokenizer is None or tokenizer.chat_template or patient.compiled:
        return
    vocabulary = tokenizer.get_vocab()
    marks = [
        t for t in ("<|im_start|>", "<|start_header_id|>", "<start_of_turn>") if t in vocabulary
    ]
    if marks:
        yield Finding(
            "chat-template-missing",
            "the model completes the question instead of answering it",
            f"the vocabulary has {marks[0]}, as chat models have, but there is no template",
            "copy chat_template.jinja or tokenizer_config.json of the original model",
        )


CHECKS = (_available, _rows, _unknown, _special, _stops, _template)
