"""Experts of transformers that loop over the counts of their tokens: computed without counting.

How many tokens an expert gets follows from weights, so such a loop has no fixed program.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["grouped_experts"]


@contextmanager
def grouped_experts(module: torch.nn.Module) -> Iterator[None]:
    """While it lasts, all experts of a model are computed at once.

    Args:
        module: configs inside it that ask for loops are changed, and put back.
    """
    configs = {id(c): c for m in module.modules() if (c := getattr(m, "config", None)) is not None}
    looping = [
        c for c in configs.values() if getattr(c, "_experts_implementation", None) == "eager"
    ]
    sources = {sys.modules.get(type(m).__module__) for m in module.modules()}
    kinds = [
        (getattr(source, name), forward)
        for source in sources
        for name, forward in _FORWARDS.items()
        if hasattr(source, name)
    ]
    originals = [kind.forward for kind, _ in kinds]
    try:
        for config in looping:
            config._experts_implementation = "grouped_mm"
        for kind, forward in kinds:
            kind.forward = forward
        yield
    finally:
        for (kind, _), original in zip(kinds, originals, strict=True):
            kind.forward = original
        for config in looping:
            config._experts_implementation = "eager"


def _routes(router: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rows in the order of their experts: places, tokens, weights, ends of groups; and logits."""
    logits = router.layer(hidden).float()
    top, indices = logits.topk(router.top_k, dim=1)
    weights = torch.softmax(top, dim=1).type_as(hidden).flatten()
    experts = indices.flatten()
    order = experts.argsort(stable=True)
    numbers = torch.arange(router.num_experts, device=experts.device)
    ends = (experts[:, None] <= numbers).sum(0).to(torch.int32)
    return order, order // router.top_k, weights[order], ends, logits


def _products(experts: Any, inputs: Tensor, ends: Tensor) -> Tensor:
    """Each group of rows times the matrix of its expert."""
    products: Any = torch.ops.transformers.grouped_mm_fallback
    made: Tensor = products(inputs, experts.weight.transpose(-2, -1), offs=ends)
    return made


def _all_experts(
    experts: Any, hidden_states: Tensor, selected_experts: Tensor, routing_weights: Tensor
) -> Tensor:
    """The weighed result of the one expert of each token, of all of them: they are modules.

    Args:
        experts: "expert_0", "expert_1" …
        hidden_states: [tokens, width].
        selected_experts: [tokens, 1, experts], 1 where a token has this expert.
        routing_weights: [tokens, 1].
    """
    made = torch.zeros_like(hidden_states)
    for number in range(experts.num_experts):
        found = experts[f"expert_{number}"](hidden_states) * routing_weights
        made = torch.where(selected_experts[:, :, number] > 0, found.to(made.dtype), made)
    return made


def _in_groups(
    experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """The weighed sum of the experts of each token, whose matrices are stacked.

    Args:
        experts: with gate_up_proj and down_proj [experts, outputs, inputs].
        hidden_states: [tokens, width].
        top_k_index: [tokens, experts of a token].
        top_k_weights: alike.
    """
    products: Any = torch.ops.transformers.grouped_mm_fallback
    order = top_k_index.flatten().argsort(stable=True)
    numbers = torch.arange(experts.num_experts, device=order.device)
    ends = (top_k_index.flatten()[:, None] <= numbers).sum(0).to(torch.int32)
    inputs = hidden_states[order // top_k_index.shape[1]]
    inner = experts._apply_gate(products(inputs, experts.gate_up_proj.transpose(-2, -1), offs=ends))
    rows = products(inner, experts.down_proj.transpose(-2, -1), offs=ends)
    rows = rows[order.argsort()] * top_k_weights.flatten()[:, None]
    together: Tensor = rows.unflatten(0, top_k_index.shape).sum(1)
    return together.to(hidden_states.dtype)


_FORWARDS: dict[str, Any] = {
    "JetMoeTopKGating": _routes,
    "JetMoeParallelExperts": _products,
    "Step3p7Experts": _in_groups,
    "SwitchTransformersExperts": _all_experts,
}
"""Classes of transformers, and what their `forward` becomes."""
