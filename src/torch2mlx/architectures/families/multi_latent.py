"""DeepSeek V2 and MiniCPM3: ports that cannot do without `rope_scaling`.

A scaling that changes nothing stands for plain rotary embeddings: YaRN by a factor of one, or
long-context factors that are all one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch2mlx.architectures.registry import Config, Rules
from torch2mlx.planning.expressions import Expr

__all__ = ["RULES"]


def _identity_yarn(config: Config, reference: Any) -> Config:
    if config.get("rope_scaling"):
        return config
    scaling = {
        "rope_type": "yarn",
        "type": "yarn",
        "factor": 1.0,
        "original_max_position_embeddings": config["max_position_embeddings"],
        "mscale": 1.0,
        "mscale_all_dim": 0.0,
    }
    return {**config, "rope_scaling": scaling}


def _identity_longrope(config: Config, reference: Any) -> Config:
    # The port leaves out the division of the logits where the embedding is tied, so the tie is
    # resolved and the head written out.
    result = {**config, "tie_word_embeddings": False}
    if config.get("rope_scaling"):
        return result
    ones = [1.0] * (config["qk_rope_head_dim"] // 2)
    scaling = {
        "rope_type": "longrope",
        "type": "longrope",
        "short_factor": ones,
        "long_factor": ones,
        "original_max_position_embeddings": config["max_position_embeddings"],
    }
    return {**result, "rope_scaling": scaling}


def _write_head(state: Mapping[str, Expr], config: Mapping[str, Any]) -> dict[str, Expr]:
    head = {"lm_head.weight": state["model.embed_tokens.weight"]}
    return {**head, **state}


RULES = (
    Rules("deepseek_v2", finish=_identity_yarn),
    Rules("minicpm3", finish=_identity_longrope, rename=_write_head),
)
