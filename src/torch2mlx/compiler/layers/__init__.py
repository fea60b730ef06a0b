"""Layers of `mlx.nn`: what they are, and which operators are calls of them."""

from __future__ import annotations

from torch2mlx.compiler.layers.layer import (
    Layer,
    LayerUse,
    all_options,
    argument_names,
    is_elementwise,
)
from torch2mlx.compiler.layers.matching import find_layers

__all__ = [
    "Layer",
    "LayerUse",
    "all_options",
    "argument_names",
    "find_layers",
    "is_elementwise",
]
