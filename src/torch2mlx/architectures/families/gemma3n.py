"""gemma 3n saved as a text model: the port reads it nested, as the multimodal model is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch2mlx.architectures.registry import Config, Rules
from torch2mlx.planning.expressions import Expr

__all__ = ["RULES"]


def _nest(config: Config) -> Config:
    return {**config, "model_type": "gemma3n", "text_config": dict(config)}


def _rename(state: Mapping[str, Expr], config: Mapping[str, Any]) -> dict[str, Expr]:
    text = config["text_config"]
    renamed = {
        name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name: e
        for name, e in state.items()
    }
    # Layers at the end reuse the keys and values of an earlier one; the port still declares
    # projections for them, which it never applies.
    kinds = text["layer_types"]
    first = len(kinds) - text["num_kv_shared_layers"]
    for layer in range(first, len(kinds)):
        giver = max(i for i in range(first) if kinds[i] == kinds[layer])
        for part in ("k_proj", "v_proj", "k_norm"):
            stem = "model.language_model.layers.{}.self_attn." + part + ".weight"
            if stem.format(giver) in renamed:
                renamed.setdefault(stem.format(layer), renamed[stem.format(giver)])
    return renamed


RULES = (Rules("gemma3n_text", reshape=_nest, rename=_rename),)
