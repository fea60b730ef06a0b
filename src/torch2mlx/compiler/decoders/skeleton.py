"""A model on the meta device that still knows its constant buffers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torch2mlx.compiler.decoders.long_rotary import both_frequencies
from torch2mlx.verification.reference import instance, reference_config

__all__ = ["Skeleton", "build_skeleton"]

MODEL_DTYPE = torch.bfloat16
"""Stands for the checkpoint's dtype: a cast to it is written as one to the dtype of an input."""


@dataclass(frozen=True)
class Skeleton:
    """A model without weights.

    Attributes:
        model: on the meta device, in `MODEL_DTYPE`, in inference mode.
        constants: buffers that no checkpoint holds, with their values in float32.
    """

    model: Any
    constants: Mapping[str, torch.Tensor]


def build_skeleton(config: Mapping[str, Any]) -> Skeleton:
    """The causal language model of a config.json.

    Raises:
        UnsupportedError: transformers has no such model.
    """
    settings = reference_config(config)
    with _parameters_on_meta(), torch.no_grad():
        exact: Any = instance(settings)
        model: Any = instance(settings, MODEL_DTYPE)
    both_frequencies(exact)
    both_frequencies(model)
    saved = set(model.state_dict())
    constants = {n: b.clone() for n, b in exact.named_buffers() if n not in saved}
    return Skeleton(model.to("meta"), constants)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Every parameter goes to the meta device as it is registered; buffers are computed."""
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and parameter.device.type != "meta":
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(self, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
