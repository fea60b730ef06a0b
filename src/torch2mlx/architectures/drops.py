"""Why a port may leave a checkpoint's tensor out.

A tensor that reaches no parameter is either something the text model computes itself or has no
use for, or a fault of the port that changes every answer.  The first kind is listed here or, for
one family, in its rules; anything else is a fault.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch2mlx.architectures.registry import rules_for

__all__ = ["drop_reason", "text_configs"]

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out)\.weight$")
_MASK = re.compile(r"\.(?:attn|attention|self_attn)\.bias$")

_REASONS = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (
            r"(?:^|\.)(?:rotary\w*|rope)\.|\.inv_freq$|\.(?:cos|sin)(?:_cached)?$",
            "rotary tables are computed, not stored, in MLX",
        ),
        (r"\.masked_bias$", "a constant attention mask"),
        (r"\.embed_scale$", "a constant that the port computes"),
        (
            r"\.self_attn\.(?:slope_rate|(?:query|key|diagonal)_decay)$",
            "how lightning attention fades is computed from the config",
        ),
        (
            r"(?:^|\.)(?:vision|visual|embed_vision|image_|multi_modal_projector|mm_projector"
            r"|patch_merge_mlp|aligner\.)|\.gate\.bias_vl$",
            "the vision part is not in this text-only port",
        ),
        (r"(?:^|\.)(?:audio|embed_audio)", "the audio part is not in this text-only port"),
        (r"(?:^|\.)mtp(?:_|\.|\d)", "multi-token prediction layers are not in this port"),
        (
            r"\.(?:activation_scale|input_scale|(?:input|output)_(?:max|min))$",
            "a range of activations, which are not quantized in MLX",
        ),
    )
)


def text_configs(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The config, and before it the language model's own where it is nested."""
    nested = config.get("text_config")
    if isinstance(nested, Mapping):
        yield nested
    yield config


def drop_reason(name: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> str | None:
    """Why a port need not use a tensor; None where no reason is known.

    Args:
        name: of the tensor in the checkpoint.
        shape: of the tensor.
        config: the normalised config.
    """
    for part in text_configs(config):
        kinds = {part.get("source_model_type"), part.get("model_type")}
        for kind in sorted(str(kind) for kind in kinds if kind):
            rule = rules_for(kind).dropped
            reason = rule(name, part) if rule else None
            if reason:
                return reason
    for pattern, reason in _REASONS:
        if pattern.search(name):
            return reason
    # A bias of this name that is learned has one dimension.
    if _MASK.search(name) and len(shape) > 1:
        return "a constant attention mask"
    ties = {part.get("tie_word_embeddings") for part in text_configs(config)} - {None}
    if _HEAD.search(name) and ties != {False}:
        return "tied to the embedding by the config"
    return _past_the_last(name, config)


def _past_the_last(name: str, config: Mapping[str, Any]) -> str | None:
    found = _LAYER.search(name)
    count = next(
        (p[k] for p in text_configs(config) for k in _LAYERS if isinstance(p.get(k), int)), None
    )
    if found is None or count is None or int(found[1]) < count:
        return None
    return f"belongs to a layer past the last of {count}, which this port leaves out"
