"""The language model of a multimodal checkpoint, as a checkpoint of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch2mlx.errors import OptionError
from torch2mlx.sources.base import Checkpoint
from torch2mlx.sources.prefix import renamed

__all__ = ["body_name", "text_model", "text_model_config"]

# Where multimodal models keep a whole causal model, and where the body of one beside its head.
_WHOLE = ("language_model.", "model.language_model.", "text_model.", "llm.")
_BODY = ("model.language_model.", "language_model.", "model.text_model.", "text_model.", "model.")
_HEAD = re.compile(r"(^|\.)lm_head\.")


def text_model_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the language model alone.

    Args:
        config: of the multimodal model.

    Raises:
        OptionError: it nests no language model, or one that has no causal class of its own.
    """
    from transformers.models.auto import modeling_auto

    nested = config.get("text_config") or config.get("llm_config")
    if not isinstance(nested, Mapping):
        raise OptionError(
            f"--text-only: config.json of this {config.get('model_type')!r} has no text_config, so "
            "it is no multimodal checkpoint; leave it out"
        )
    model_type = str(nested.get("model_type"))
    name = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    if name is None:
        raise OptionError(
            f"--text-only: transformers has no causal language model of type {model_type!r}, to "
            f"which the text of {config.get('model_type')!r} could be compared; leave it out"
        )
    inherited = {
        key: config[key]
        for key in ("dtype", "torch_dtype", "eos_token_id", "quantization_config")
        if config.get(key) is not None and nested.get(key) is None
    }
    result = {k: v for k, v in nested.items() if k not in ("_name_or_path", "auto_map")}
    return {**result, **inherited, "model_type": model_type, "architectures": [str(name)]}


def text_model(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint of the language model in a multimodal one.

    Its tensors get the names that the causal model alone has in transformers.

    Raises:
        OptionError: see `text_model_config`; or no tensor has a name of a language model.
    """
    config = text_model_config(checkpoint.config)
    names = _names(checkpoint.state, config)
    if not names:
        raise OptionError(
            f"--text-only: {checkpoint.location} has no tensors of a language model, such as "
            "language_model.model.embed_tokens.weight"
        )
    # The nested config often leaves this at its default, whatever the weights say.
    config["tie_word_embeddings"] = not any(_HEAD.search(name) for name in names.values())
    left = len(checkpoint.state) - len(names)
    note = f"--text-only: {left} tensors that belong to no language model are left out"
    found = renamed(checkpoint, names)
    return replace(found, config=config, notes=(*checkpoint.notes, note))


def _names(state: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    """Tensor → its name in the causal model."""
    body = body_name(config)
    for prefix in _WHOLE:
        found = {n: n.removeprefix(prefix) for n in state if n.startswith(prefix)}
        if any(new.startswith(f"{body}.") for new in found.values()):
            return found
    heads = {n: n[n.index("lm_head.") :] for n in state if _HEAD.search(n)}
    for prefix in _BODY:
        found = {n: f"{body}.{n.removeprefix(prefix)}" for n in state if n.startswith(prefix)}
        if any(re.search(r"\.(embed_tokens|wte|word_embeddings)\.weight$", n) for n in found):
            return {**found, **heads}
    return {}


def body_name(config: Mapping[str, Any]) -> str:
    """Attribute of transformers' causal model that holds all but the head; "model" if unknown."""
    import transformers
    from transformers.models.auto import modeling_auto

    model_type = str(config.get("source_model_type") or config.get("model_type"))
    name = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    try:
        return str(getattr(transformers, str(name)).base_model_prefix)
    except (AttributeError, ImportError):  # no such class, or no torch
        return "model"
