"""Ministral: Mistral with a kind for each layer, which mlx-lm's llama port knows."""

from __future__ import annotations

from torch2mlx.architectures.registry import Config, Rules

__all__ = ["RULES"]


def _as_mistral(config: Config) -> Config:
    return {**config, "model_type": "mistral"}


RULES = (Rules("ministral", reshape=_as_mistral),)
