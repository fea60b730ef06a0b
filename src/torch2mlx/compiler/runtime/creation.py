"""Sequences of numbers as PyTorch rounds them."""

from __future__ import annotations

import math

import mlx.core as mx

__all__ = ["arange", "linspace"]


def arange(start: float, end: float, step: float) -> mx.array:
    """start, start + step, … below end, in single precision."""
    count = max(0, math.ceil((end - start) / step))
    return start + step * mx.arange(count).astype(mx.float32)


def linspace(start: float | mx.array, end: float | mx.array, steps: int) -> mx.array:
    """Evenly from start to end, counted from the nearer of the two."""
    if steps < 2:
        return mx.full([steps], start, mx.float32)
    i = mx.arange(steps).astype(mx.float32)
    step = (end - start) / (steps - 1)
    return mx.where(i < steps // 2, start + step * i, end - step * (steps - 1 - i))
