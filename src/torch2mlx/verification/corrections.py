"""Where the installed transformers computes something else than the authors of a model.

The reference of every comparison, and what a port is generated from, then do as the authors do.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["DECAYS", "correct", "corrections"]

DECAYS = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")
"""Buffers of MiniMax's lightning attention, which its config determines."""


def correct(model: nn.Module) -> None:
    """Put right what is known to be wrong in a model, in place.

    PhiMoE with long rope: texts beyond the original length take the long factors (Microsoft's code,
    and transformers up to 4.57).  Since then the decorator of `forward` still copies the right
    frequencies into a buffer, but `forward` computes the short ones anew.

    MiniMax-Text-01: how its lightning attention fades follows from the config, in float32; rounded
    copies that a checkpoint stores as buffers are passed over.
    """
    module: Any
    for module in model.modules():
        if type(module).__name__ == "PhimoeRotaryEmbedding" and _is_long(module):
            # A bound method follows its module into copies.
            module.rope_init_fn = types.MethodType(_chosen, module)
        if type(module).__name__ == "MiniMaxLightningAttention":
            slopes = module.get_slope_rate()
            values = (slopes, *module.decay_factors(slopes))
            for name, value in zip(DECAYS, values, strict=True):
                module.register_buffer(name, value, persistent=False)


def corrections(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What `correct` does to the model of a config.json, in words."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if config.get("model_type") != "phimoe" or "long_factor" not in rope:
        return ()
    return (
        "texts beyond original_max_position_embeddings take the long rotary factors, as in the "
        "authors' code; the installed transformers keeps the short ones",
    )


def _is_long(module: Any) -> bool:
    return bool(module.rope_type == "longrope")


def _chosen(self: Any, *_: Any) -> tuple[Tensor, float]:
    return self.inv_freq, self.attention_scaling
