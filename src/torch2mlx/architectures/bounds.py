"""Sizes in a config that no model has, refused before anything is built from them.

Building a port takes time for each layer, and transformers lists a kind for each; a config that
asks for a billion would keep the machine busy until its memory is gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from torch2mlx.errors import PlanError, UnsupportedError
from torch2mlx.planning.expressions import Expr

__all__ = ["check_counts", "check_sizes"]

_LAYERS = frozenset(
    "num_hidden_layers n_layer n_layers num_layers num_decoder_layers num_encoder_layers depth "
    "num_kv_shared_layers num_nextn_predict_layers num_mtp_modules".split()
)
_EXPERTS = frozenset(
    "num_experts num_local_experts n_routed_experts moe_num_experts num_routed_experts "
    "n_shared_experts num_shared_experts moe_num_shared_experts zero_expert_num".split()
)

_MOST_LAYERS = 10_000
_MOST_EXPERTS = 100_000
_MOST = 2**31 - 1  # the longest axis of an MLX array


def _sizes(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str, float]]:
    """(path, key, value) of every number in a config and its nested parts."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _sizes(value, f"{path}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{path}{key}", str(key), value


def _is_size(key: str) -> bool:
    words = key.split("_")
    return bool({"size", "dim", "heads", "width", "rank", "experts", "layers"} & set(words)) or (
        words[0] == "n" and len(words) > 1
    )


def check_sizes(config: Mapping[str, Any]) -> None:
    """Refuse a config with a size that no model has.

    Args:
        config: as saved or normalised.

    Raises:
        UnsupportedError: names the key, its value and the largest that is accepted.
    """
    for path, key, value in _sizes(config):
        if key in _LAYERS:
            most = _MOST_LAYERS
        elif key in _EXPERTS:
            most = _MOST_EXPERTS
        elif _is_size(key):
            most = _MOST
        else:
            continue
        if isfinite(value) and value > most:
            raise UnsupportedError(
                f"config.json: {path} is {value:,}, expected at most {most:,}; no model has so "
                "many, correct the key"
            )


def check_counts(config: Mapping[str, Any], state: Mapping[str, Expr]) -> None:
    """Refuse a config that asks for far more layers or experts than there are tensors.

    What is missing in detail is told by the mapping; this is for configs that would take very
    long to build.

    Args:
        config: as saved.
        state: the checkpoint's tensors.

    Raises:
        PlanError: names the key, its value and the number of tensors.
    """
    most = 10 * (len(state) + 10)
    longest = max((axis for expr in state.values() for axis in expr.shape), default=0)
    for path, key, value in _sizes(config):
        stacked = longest if key in _EXPERTS else 0
        if key in _LAYERS | _EXPERTS and value > max(most, stacked):
            raise PlanError(
                f"config.json: {path} is {value:,}, but the checkpoint holds {len(state)} tensors "
                "in all; config.json and weights are not of one model"
            )
