"""Rotary frequencies that change where a text grows beyond a length ("longrope").

transformers computes the second set when it is first needed and copies one of the two into a
buffer on every call; here both are buffers, and an operator chooses.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from torch2mlx.compiler.decoders.operators import operators
from torch2mlx.compiler.forwards import forwards_replaced

__all__ = ["both_frequencies", "chosen_frequencies"]


def both_frequencies(model: nn.Module) -> None:
    """Give every such embedding of a model, its buffers on the CPU, the second set as a buffer."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for module in _embeddings(model):
        length = _limit(module) + 1
        long, _ = ROPE_INIT_FUNCTIONS["longrope"](module.config, "cpu", seq_len=length)
        module.register_buffer("long_inv_freq", long, persistent=False)


@contextmanager
def chosen_frequencies(model: nn.Module, cache: Callable[[], Tensor]) -> Iterator[None]:
    """While it lasts, such embeddings choose by an operator.

    Args:
        model: with both sets, see `both_frequencies`.
        cache: the one that the model is traced with.
    """

    def choose(self: Any, short: Tensor, long: Tensor, positions: Tensor) -> Tensor:
        made: Tensor = operators().frequencies(
            short, long, cache(), positions.shape[1], _limit(self)
        )
        return made

    def forward(self: Any, x: Tensor, position_ids: Tensor) -> Any:
        short = self._buffers["inv_freq"]
        chosen = choose(self, short, self.long_inv_freq, position_ids)
        scales = [self.config.rope_parameters.get(f"{kind}_mscale") for kind in ("short", "long")]
        if None not in scales:  # PhiMoE, which asks for the length by branches
            angles = position_ids[..., None].float() * chosen
            angles = torch.cat((angles, angles), -1)
            scale = scales[0]
            if scale != scales[1]:
                one, two = (torch.full((1,), value, device=x.device) for value in scales)
                scale = choose(self, one, two, position_ids)
            return (angles.cos() * scale).to(x.dtype), (angles.sin() * scale).to(x.dtype)
        self._buffers["inv_freq"] = chosen
        try:
            return inspect.unwrap(type(self).forward)(self, x, position_ids)
        finally:
            self._buffers["inv_freq"] = short

    modules = _embeddings(model)
    with forwards_replaced(modules, forward):
        yield


def _embeddings(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if getattr(m, "rope_type", None) == "longrope"]


def _limit(module: Any) -> int:
    return int(module.config.rope_parameters["original_max_position_embeddings"])
