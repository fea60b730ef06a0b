"""Which token ids end a generation: the union of what a checkpoint's files say.

mlx-lm stops on config.json's `eos_token_id` (replaced by generation_config.json's, if that has
one) and on the tokenizer's EOS token.  Checkpoints spread the ids over more places than these,
and a chat model that misses its end-of-turn token never stops.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch2mlx.errors import SourceError
from torch2mlx.packaging.chats import render_chat

__all__ = ["END_OF_TURN", "StopIds", "end_of_turn", "find_stop_ids"]

END_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eot|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end|>",
    "<|return|>",
    "<|end_of_turn|>",
    "<|endofturn|>",
    "[|endofturn|]",
    "<|END_OF_TURN_TOKEN|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end_of_msg|>",
    "<|role_end|>",
    "<|assistant_end|>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
    "<|eos|>",
    "<eos>",
    "[EOS]",
    "</s>",
)
"""Tokens that chat formats write after an assistant's last word."""

_ANSWER = "torch2mlx answer"
_IDS = 2**31  # programs in Swift read a larger number as a damaged file


@dataclass(frozen=True)
class StopIds:
    """Ids that end a generation.

    Attributes:
        ids: without repetition; generation_config.json's first, so that programs which read
            only the first one behave as before.
        origins: for each id, the places that name it.
        notes: entries that were ignored.
    """

    ids: tuple[int, ...]
    origins: Mapping[int, tuple[str, ...]]
    notes: tuple[str, ...] = ()


def find_stop_ids(
    config: Mapping[str, Any],
    generation_config: Mapping[str, Any],
    tokenizer: Any | None = None,
    port_module: str | None = None,
) -> StopIds:
    """Unite the stop ids of all sources.

    Args:
        config: config.json, its text_config included.
        generation_config: generation_config.json, {} if there is none.
        tokenizer: a transformers tokenizer, for its EOS token and its chat template; None if
            there is none or it cannot be loaded.
        port_module: module of mlx-lm's port; a port may bring ids of its own
            (TOKENIZER_DEFAULTS), which mlx-lm ignores once a config names any.
    """
    text_config = config.get("text_config")
    found: list[tuple[str, Any]] = [
        ("generation_config.json", generation_config.get("eos_token_id")),
        ("config.json", config.get("eos_token_id")),
    ]
    if isinstance(text_config, Mapping):
        found.append(("config.json text_config", text_config.get("eos_token_id")))
    if tokenizer is not None:
        found.append(("tokenizer EOS token", tokenizer.eos_token_id))
        found.append(("chat template's end of turn", end_of_turn(tokenizer)))
    if port_module is not None:
        defaults = getattr(importlib.import_module(port_module), "TOKENIZER_DEFAULTS", None) or {}
        found.append((f"{port_module} defaults", defaults.get("eos_token_ids")))

    origins: dict[int, tuple[str, ...]] = {}
    notes: list[str] = []
    for origin, value in found:
        for item in value if isinstance(value, list | tuple) else (value,):
            if item is None:
                continue
            if type(item) is not int or not 0 <= item < _IDS:
                notes.append(f"{origin}: eos_token_id {item!r} is no token id and was ignored")
                continue
            origins[item] = (*origins.get(item, ()), origin)
    return StopIds(tuple(origins), origins, tuple(notes))


def end_of_turn(tokenizer: Any) -> int | None:
    """Id of the token that the chat template writes after the assistant's last word.

    A template is asked by rendering a finished conversation, not by searching its text: in
    OpenAI's harmony format `<|end|>` closes every message, thoughts included, and only
    `<|return|>` closes the turn.

    Returns:
        None without a template, if it cannot be rendered, or if no token of `END_OF_TURN`
        follows the answer.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    conversation = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": _ANSWER},
    ]
    try:
        text = render_chat(tokenizer, conversation)
    except SourceError:
        return None
    _, answer, rest = text.rpartition(_ANSWER)
    if not answer:
        return None
    rest = rest.lstrip()
    token = next((t for t in END_OF_TURN if rest.startswith(t)), None)
    if token is None:
        return None
    found = tokenizer.get_vocab().get(token)
    return found if isinstance(found, int) else None
