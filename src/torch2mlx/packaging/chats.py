"""Conversations as a tokenizer's chat template writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch2mlx.errors import SourceError

__all__ = ["render_chat"]


def render_chat(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], *, answer: bool = False
) -> str:
    """The text of a conversation.

    Args:
        tokenizer: transformers' or mlx-lm's, with a chat template.
        messages: objects with "role" and "content".
        answer: end where the model's answer begins.

    Raises:
        SourceError: the template refuses the conversation, as some do that want a system message
            or other roles, or it is damaged.
    """
    try:
        found = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=answer
        )
    except Exception as error:  # the template is a program of the checkpoint: it may raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SourceError(f"the chat template refuses the conversation: {reason}") from error
    return str(found)
