"""The config of a model that consists of some layers of another.

Model types describe what their layers are in three ways: a value a layer, lists of layer
numbers, and schedules such as "every sixth layer" or "the first three".  All of them have to
follow when layers are left out.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch2mlx.verification.layers import NUMBER_LISTS, text_part
from torch2mlx.verification.reference import reference_config
from torch2mlx.verification.sizes import LAYER_KEYS

__all__ = ["thin_config"]

# Layer i is of the special kind if i % period == offset ...
_PERIODS = (
    ("attn_layer_period", "attn_layer_offset"),
    ("expert_layer_period", "expert_layer_offset"),
)
# ... or if (i + 1) % interval == 0 ...
_INTERVALS = (
    "decoder_sparse_step",
    "full_attention_interval",
    "global_attn_every_n_layers",
    "interleave_moe_layer_step",
    "moe_layer_interval",
    "no_rope_layer_interval",
    "sliding_window_pattern",
    "_sliding_window_pattern",
    "layer_group_size",
)
# ... or if it comes after so many others.
_LEADING = (
    "first_k_dense_replace",
    "num_dense_layers",
    "max_window_layers",
    "moe_layer_start_index",
)


def thin_config(config: Mapping[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    """The config of a model that consists of some layers of another, renumbered from zero.

    Args:
        config: contents of config.json.
        layers: ascending layer numbers of the original.

    Per-layer lists, lists of layer numbers and schedules (`first_k_dense_replace`, periods and
    intervals) follow.  A schedule can be expressed for a single layer, for layers in a row that
    start at a multiple of its period, and for any layers where lists name their kinds; whether
    it came out right is told by comparing `layers.layer_signatures`.
    """
    result = copy.deepcopy(dict(config))
    text: Any = text_part(result)
    settings = reference_config(config).get_text_config()
    known = settings.to_dict()
    key = next((k for k in LAYER_KEYS if isinstance(known.get(k), int)), None)
    count = int(known[key] if key else settings.num_hidden_layers)
    if key:  # Nemotron-H counts the entries of its list of layers instead
        text[key] = len(layers)
    _follow_lists(text, count, layers)
    _follow_schedules(text, layers)
    if text.get("num_kv_shared_layers"):
        first_shared = count - int(text["num_kv_shared_layers"])
        text["num_kv_shared_layers"] = sum(i >= first_shared for i in layers)
    return result


def _follow_lists(part: dict[str, Any], count: int, layers: Sequence[int]) -> None:
    new_number = {old: new for new, old in enumerate(layers)}
    for key, value in list(part.items()):
        if isinstance(value, dict):
            if key == "per_layer_config":
                part[key] = {
                    str(new_number[int(k)]).zfill(len(k)): v
                    for k, v in value.items()
                    if int(k) in new_number
                }
            elif key == "linear_attn_config":  # numbers its layers from one
                part[key] = {
                    k: [new_number[n - 1] + 1 for n in v if n - 1 in new_number]
                    if isinstance(v, list)
                    else v
                    for k, v in value.items()
                }
            elif not key.startswith("rope_"):
                _follow_lists(value, count, layers)
        elif key in NUMBER_LISTS and isinstance(value, list):
            part[key] = [new_number[n] for n in value if n in new_number]
        elif key == "block_types" and isinstance(value, list) and value:
            part[key] = [value[i % len(value)] for i in layers]
        elif key == "hybrid_override_pattern" and isinstance(value, str):
            part[key] = "".join(value[i] for i in layers if i < len(value))
        elif isinstance(value, list) and len(value) == count and _listed_per_layer(key):
            part[key] = [value[i] for i in layers]


def _listed_per_layer(key: str) -> bool:
    """Whether a list as long as the model is deep holds one value a layer."""
    return not str(key).endswith(("_token_id", "_multipliers", "_limit", "architectures"))


def _follow_schedules(text: dict[str, Any], layers: Sequence[int]) -> None:
    first = layers[0]
    for period_key, offset_key in _PERIODS:
        period = text.get(period_key)
        if isinstance(period, int) and period > 1 and first % period:
            hit = len(layers) == 1 and first % period == text.get(offset_key, 0)
            text[period_key], text[offset_key] = (1, 0) if hit else (2, 1)
    for key in _INTERVALS:
        interval = text.get(key)
        if isinstance(interval, int) and interval > 1 and (first % interval or len(layers) == 1):
            text[key] = 1 if (first + 1) % interval == 0 else max(2, len(layers) + 1)
    for key in _LEADING:
        if isinstance(text.get(key), int):
            text[key] = sum(i < text[key] for i in layers)
    if isinstance(text.get("moe_layer_end_index"), int) and text["moe_layer_end_index"] >= 0:
        text["moe_layer_end_index"] = max(
            0, sum(i <= text["moe_layer_end_index"] for i in layers) - 1
        )
