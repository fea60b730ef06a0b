"""Padding of one axis with elements of the array; a negative width crops."""

from __future__ import annotations

import mlx.core as mx

__all__ = ["reflect", "replicate", "wrap"]


def reflect(x: mx.array, axis: int, before: int, after: int) -> mx.array:
    """`c b | a b c | b a`: the mirror image, without the border element."""
    last = x.shape[axis] - 1
    places = mx.arange(-before, last + 1 + after)
    return mx.take(x, last - mx.abs(last - mx.abs(places)), axis=axis)


def replicate(x: mx.array, axis: int, before: int, after: int) -> mx.array:
    """`a a | a b c | c c`: the border element."""
    extent = x.shape[axis]
    return mx.take(x, mx.clip(mx.arange(-before, extent + after), 0, extent - 1), axis=axis)


def wrap(x: mx.array, axis: int, before: int, after: int) -> mx.array:
    """`b c | a b c | a b`: the elements of the other end."""
    extent = x.shape[axis]
    return mx.take(x, mx.arange(-before, extent + after) % extent, axis=axis)
