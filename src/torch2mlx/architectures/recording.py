"""Calls of MLX functions that are recorded with their constants, to be made on any operands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from torch2mlx.dtypes import DType, dtype_from_mx
from torch2mlx.planning.regions import Region, as_slices

__all__ = ["Call", "hole", "local_inverse", "mx_dtype", "numeric_inverse", "recorded", "results_of"]


def mx_dtype(dtype: DType) -> Any:
    """The dtype under which mlx.core.load presents a stored type (fp8 as uint8)."""
    import mlx.core as mx

    return getattr(mx, dtype.mx_name) if dtype.mx_name else mx.uint8


@dataclass(frozen=True, slots=True)
class Hole:
    """Where an operand goes in a recorded call."""

    index: int


@cache
def hole(index: int) -> Hole:
    """The one for an operand."""
    return Hole(index)


class Call:
    """A function with the arguments that are no tensors; takes the tensors."""

    __slots__ = ("_args", "_function", "_kwargs")

    def __init__(self, function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> None:
        self._function = function
        self._args = args
        self._kwargs = kwargs

    def __call__(self, *values: Any) -> Any:
        kwargs = {key: self._fill(value, values) for key, value in self._kwargs.items()}
        return self._function(*self._fill(self._args, values), **kwargs)

    def _fill(self, value: Any, values: tuple[Any, ...]) -> Any:
        if isinstance(value, Hole):
            return values[value.index]
        if isinstance(value, list | tuple):
            return type(value)(self._fill(v, values) for v in value)
        return value


_calls: dict[Any, Call] = {}


def recorded(function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Call:
    """The call; one object for all equal ones, since a large model makes the same one often."""

    def key(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value), tuple(key(v) for v in value)
        return type(value), value  # 1, 1.0 and True are equal, and are different constants

    named = tuple((name, key(value)) for name, value in sorted(kwargs.items()))
    try:
        return _calls.setdefault((function, key(args), named), Call(function, args, kwargs))
    except TypeError:  # a constant that cannot be compared, such as an array
        return Call(function, args, kwargs)


@lru_cache(maxsize=1024)
def results_of(
    call: Call, operands: tuple[tuple[tuple[int, ...], DType], ...]
) -> tuple[list[tuple[DType, tuple[int, ...]]], type | None]:
    """(dtype, shape) of what a call returns, and the kind of container if it returns several.

    MLX is lazy: this computes nothing.
    """
    import mlx.core as mx

    probe = call(*(mx.zeros(shape, mx_dtype(dtype)) for shape, dtype in operands))
    parts = [probe] if isinstance(probe, mx.array) else list(probe)
    results = [(dtype_from_mx(part.dtype), tuple(part.shape)) for part in parts]
    return results, None if isinstance(probe, mx.array) else type(probe)


def numeric_inverse(
    name: str, args: tuple[Any, ...]
) -> tuple[Callable[[Any], Any] | None, Callable[[Any], Any] | None]:
    """(inverse, forward) in torch of a unary function or one with a scalar constant."""
    constants = [a for a in args if isinstance(a, int | float)]
    if len(args) == 1:
        unary: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
            "negative": (lambda x: -x, lambda x: -x),
            "exp": (lambda y: y.log(), lambda x: x.exp()),
            "log": (lambda y: y.exp(), lambda x: x.log()),
        }
        return unary.get(name, (None, None))
    if len(args) == 2 and len(constants) == 1 and not isinstance(args[0], int | float):
        c = constants[0]
        binary: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
            "add": (lambda y: y - c, lambda x: x + c),
            "subtract": (lambda y: y + c, lambda x: x - c),
            "multiply": (lambda y: y / c, lambda x: x * c),
            "divide": (lambda y: y * c, lambda x: x / c),
        }
        return binary.get(name, (None, None))
    if name == "add" and len(constants) == 1:
        c = constants[0]
        return (lambda y: y - c), (lambda x: c + x)
    return None, None


def local_inverse(
    name: str, args: tuple[Any, ...], shape: tuple[int, ...]
) -> Callable[[Region], Callable[[Any], Any]] | None:
    """Inverse in torch by region, for a tensor times a constant array such as a factor a row."""
    import mlx.core as mx

    arrays = [a for a in args if isinstance(a, mx.array)]
    if name != "multiply" or len(args) != 2 or len(arrays) != 1:
        return None
    factors = np.broadcast_to(np.array(arrays[0].astype(mx.float32)), shape)
    if not factors.all():
        return None

    def inverse_in(region: Region) -> Callable[[Any], Any]:
        import torch

        return lambda y: y / torch.from_numpy(factors[as_slices(region)].copy())

    return inverse_in
