"""LFM2: the width of a block is the hidden size, and is no longer saved."""

from __future__ import annotations

from typing import Any

from torch2mlx.architectures.registry import Config, Rules

__all__ = ["RULES"]


def _finish(config: Config, reference: Any) -> Config:
    return {"block_dim": config["hidden_size"], **config}


RULES = (Rules("lfm2", finish=_finish),)
