"""gemma 3 and 4: the vocabulary repeated at top level, and `global_` keys for full attention."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch2mlx.architectures.registry import Config, Rules

__all__ = ["RULES"]

_GLOBAL = {"head_dim": "global_head_dim", "num_key_value_heads": "num_global_key_value_heads"}


def _global_layers(config: Config, reference: Any) -> Config:
    kinds = config.get("layer_types") or []
    overrides = config.get("per_layer_config")
    if not isinstance(overrides, dict):
        return config
    by_layer = {int(number): values for number, values in overrides.items()}  # "05" as well
    result = dict(config)
    for name, global_name in _GLOBAL.items():
        found = {
            by_layer.get(i, {}).get(name, config.get(name))
            for i, kind in enumerate(kinds)
            if kind == "full_attention"
        }
        if len(found) == 1:
            result[global_name] = found.pop()
    return result


def _vocabulary(config: Config, reference: Any) -> Config:
    return {**config, "vocab_size": config["text_config"]["vocab_size"]}


_SHARED = re.compile(r"\.layers\.(\d+)\.self_attn\.(?:k_proj|v_proj|k_norm)\.")


def _shared_keys(name: str, config: Mapping[str, Any]) -> str | None:
    found = _SHARED.search(name)
    first = config["num_hidden_layers"] - (config.get("num_kv_shared_layers") or 0)
    if found and int(found[1]) >= first:
        return "the layer uses the keys and values of an earlier one"
    return None


RULES = (
    Rules("gemma3", finish=_vocabulary),
    Rules("gemma4", finish=_vocabulary),
    Rules("gemma4_text", finish=_global_layers, dropped=_shared_keys),
)
