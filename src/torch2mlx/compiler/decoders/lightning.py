"""Lightning attention, whose state lies in a cache class of the model's own (MiniMax-Text-01).

transformers goes through a text block by block in Python, which no trace can do for any length;
here the whole is one operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from torch2mlx.compiler.decoders.operators import operators
from torch2mlx.compiler.forwards import forwards_replaced

__all__ = ["single_lightning"]


@contextmanager
def single_lightning(model: nn.Module, cache: Callable[[], Tensor]) -> Iterator[None]:
    """While it lasts, such layers of a model attend by one operator.

    Args:
        model: of transformers.
        cache: the one that the model is traced with.
    """

    def forward(self: Any, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        batch, length, _width = hidden_states.shape
        qkv = self.act_fn(self.qkv_proj(hidden_states))
        qkv = operators().without_padding(qkv, cache(), -1)
        qkv = qkv.reshape(batch, length, self.num_attention_heads, 3 * self.head_dim)
        queries, keys, values = (x.transpose(1, 2) for x in qkv.split(self.head_dim, dim=3))
        y = operators().lightning_attention(
            values, cache(), self.layer_idx, 0, queries, keys, self.slope_rate
        )
        y = self.norm(y.transpose(1, 2).reshape(batch, length, -1))
        return self.out_proj(self.output_gate(hidden_states).sigmoid() * y), None

    modules: list[Any] = [
        m for m in model.modules() if type(m).__name__ == "MiniMaxLightningAttention"
    ]
    with forwards_replaced(modules, forward):
        yield
