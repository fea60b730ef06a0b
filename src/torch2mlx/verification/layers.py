"""The kinds of layers a config describes, told from the model that transformers builds of it.

A layer's signature is what it computes with: its modules' classes, parameter names and shapes,
and plain attributes (window, activation, number of experts ...).  It comes from a model on the
meta device, so any size costs no memory, and no table of model types is needed.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

from torch2mlx.verification.reference import build_skeleton, decoder_layers

if TYPE_CHECKING:
    import torch

__all__ = ["NUMBER_LISTS", "Signature", "layer_signatures", "longest_sequence", "text_part"]

Signature = Hashable

_NESTED = ("text_config", "llm_config", "language_config")
NUMBER_LISTS = (
    *("mlp_only_layers", "full_attn_idxs", "moe_layers", "attn_layer_indices"),
    "hybrid_layer_ids",
)
"""Config keys that list layer numbers, from zero."""

# Attributes that say where a layer is, not what it does.
_POSITIONAL = ("idx", "index", "layer_id", "layer_number", "training", "depth")


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The dict that describes the language model: the config or one nested in it."""
    for key in _NESTED:
        if isinstance(config.get(key), Mapping):
            return config[key]  # type: ignore[no-any-return]
    return config


def longest_sequence(config: Mapping[str, Any]) -> int:
    """The longest sequence that a config allows, in tokens; 2^20 where it does not say."""
    for part in (text_part(config), config):
        for key in ("max_position_embeddings", "n_positions", "max_sequence_length"):
            if isinstance(part.get(key), int):
                return int(part[key])
    return 1 << 20


def layer_signatures(config: Mapping[str, Any]) -> list[Signature]:
    """Signature of each decoder layer, in order; layers with equal ones are of one kind.

    Raises:
        UnsupportedError: transformers has no such model, or it has no list of layers.
    """
    model = build_skeleton(config)
    settings: Any = model.config
    per_layer = _per_layer_lists(settings.get_text_config().to_dict())
    layers = decoder_layers(model)[1]
    return [
        (
            tuple(str(values[i]) for values in per_layer if len(values) == len(layers)),
            _signature(layer),
        )
        for i, layer in enumerate(layers)
    ]


def _per_layer_lists(values: Mapping[str, Any]) -> list[list[Any]]:
    return [
        v
        for key, v in sorted(values.items())
        if isinstance(v, list) and "layer" in key and key not in NUMBER_LISTS
    ]


def _signature(layer: torch.nn.Module) -> Signature:
    parts: list[Hashable] = []
    for name, module in layer.named_modules():
        plain = tuple(
            (key, str(value))
            for key, value in sorted(vars(module).items())
            if isinstance(value, (bool, int, float, str, type(None)))
            and not key.startswith("_")
            and not any(word in key for word in _POSITIONAL)
        )
        parts.append((name, type(module).__name__, plain))
    shapes = tuple((name, tuple(p.shape)) for name, p in layer.named_parameters())
    return tuple(parts), shapes
