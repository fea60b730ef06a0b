"""Experts of transformers that loop over the counts of their tokens, as grouped products instead.

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
    source: Any = sys.modules.get("transformers.models.jetmoe.modeling_jetmoe")
    kinds = [] if source is None else [source.JetMoeTopKGating, source.JetMoeParallelExperts]
    originals = [kind.forward for kind in kinds]
    try:
        for config in looping:
            config._experts_implementation = "grouped_mm"
        for kind, forward in zip(kinds, (_routes, _products), strict=False):
            kind.forward = forward
        yield
    finally:
        for kind, original in zip(kinds, originals, strict=True):
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
