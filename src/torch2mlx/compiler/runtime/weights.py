"""Weights that code outside of their layer reads."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

__all__ = ["weight_of"]


def weight_of(layer: Any) -> mx.array:
    """The weight of a layer, dequantized where the layer is."""
    weight: mx.array = layer.weight
    if "scales" not in layer:
        return weight
    how = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
    return mx.dequantize(weight, layer.scales, layer.get("biases"), **how)
