"""Fewer layers, fewer rows: a checkpoint cut to what one comparison needs.

Widths and weights stay the real ones.  Layers are picked and renumbered from zero, the
vocabulary becomes a few hundred neighbouring rows, and a layer with more experts than memory
allows keeps the first of them.  Nothing is read here: the cut tensors are expressions.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch2mlx.errors import PlanError
from torch2mlx.planning.expressions import Expr, Slice
from torch2mlx.planning.regions import full
from torch2mlx.verification.layers import text_part
from torch2mlx.verification.shrinking import place_special_ids
from torch2mlx.verification.sizes import EXPERT_KEYS, GROUP_KEYS, TOP_K_KEYS

__all__ = ["LayerNames", "cut_experts", "cut_vocabulary", "pick_layers"]

# Tensors with one row or slice an expert: stacked experts, router and its correction.
_ROUTED = re.compile(r"expert|router|\.gate\.|gate_weight|correction_bias")


@dataclass(frozen=True)
class LayerNames:
    """How a checkpoint names its decoder layers.

    Attributes:
        prefix: what comes before the layer's number ("model.layers.").
    """

    prefix: str

    @classmethod
    def of(cls, state: Mapping[str, Expr], count: int) -> LayerNames:
        """Find the prefix under which numbers 0 to `count` - 1 occur.

        Raises:
            PlanError: no such numbering.
        """
        numbers: dict[str, set[int]] = {}
        for name in state:
            match = re.match(r"(.*?(?:^|\.))(\d+)\.", name)
            if match:
                numbers.setdefault(match[1], set()).add(int(match[2]))
        towers = ("vision", "visual", "audio", "image", "mtp")
        fitting = sorted(
            (p for p, found in numbers.items() if found.issuperset(range(count))),
            key=lambda p: (any(word in p for word in towers), -len(numbers[p]), p),
        )
        if not fitting:
            raise PlanError(
                f"the checkpoint's tensors are not numbered as {count} layers (found "
                f"{', '.join(sorted(numbers)[:5]) or 'no numbers'}), so single layers cannot be "
                "compared; check num_hidden_layers in config.json"
            )
        return cls(fitting[0])

    def number(self, name: str) -> int | None:
        """The layer that a tensor belongs to, or None for one outside of the layers."""
        if not name.startswith(self.prefix):
            return None
        head = name[len(self.prefix) :].split(".", 1)[0]
        return int(head) if head.isdigit() else None

    def renumbered(self, name: str, number: int) -> str:
        """The tensor's name in layer `number`."""
        rest = name[len(self.prefix) :].split(".", 1)[1]
        return f"{self.prefix}{number}.{rest}"


def pick_layers(
    state: Mapping[str, Expr], names: LayerNames, layers: Sequence[int]
) -> dict[str, Expr]:
    """The tensors of some layers, renumbered from zero, and those outside of any layer."""
    new_number = {old: new for new, old in enumerate(layers)}
    result = {}
    for name, expr in state.items():
        number = names.number(name)
        if number is None:
            result[name] = expr
        elif number in new_number:
            result[names.renumbered(name, new_number[number])] = expr
    return result


def cut_vocabulary(
    config: Mapping[str, Any], state: Mapping[str, Expr], rows: int = 512
) -> tuple[dict[str, Any], dict[str, Expr]]:
    """Cut embedding and head to `rows` rows from the middle of the vocabulary.

    The first rows of many vocabularies are reserved tokens that were never trained, so they
    would compare little.
    """
    result = copy.deepcopy(dict(config))
    text: Any = text_part(result)
    vocabulary = next(
        (int(v["vocab_size"]) for v in (text, result) if isinstance(v.get("vocab_size"), int)), 0
    )
    if vocabulary <= rows:
        return result, dict(state)
    start = (vocabulary - rows) // 2
    cut = {
        name: Slice(expr, (range(start, start + rows), *full(expr.shape[1:])))
        if expr.shape and expr.shape[0] == vocabulary and ".layers." not in name
        else expr
        for name, expr in state.items()
    }
    for part in (text, result):
        if part is text or isinstance(part.get("vocab_size"), int):
            part["vocab_size"] = rows
        if isinstance(part.get("vocab_size_per_layer_input"), int):
            part["vocab_size_per_layer_input"] = rows
    place_special_ids(result, rows)
    return result, cut


def cut_experts(
    config: Mapping[str, Any], state: Mapping[str, Expr], names: LayerNames, experts: int
) -> tuple[dict[str, Any], dict[str, Expr]]:
    """Keep the first experts of every layer, with their rows of the router.

    Args:
        config: of the model, thin or not.
        state: its tensors.
        names: of its layers.
        experts: how many to keep; expert groups keep two experts each at least.
    """
    result = copy.deepcopy(dict(config))
    text: Any = text_part(result)
    holders = [text, *(v for k, v in text.items() if k == "ffn_config" and isinstance(v, dict))]
    total = 0
    for part in holders:
        for key in EXPERT_KEYS:
            if isinstance(part.get(key), int) and part[key] > experts:
                total = int(part[key])
                part[key] = experts
        for key in TOP_K_KEYS:
            if isinstance(part.get(key), int):
                part[key] = min(part[key], experts)
        for key in GROUP_KEYS:
            if isinstance(part.get(key), int) and part[key] > 1:
                part[key] = max(1, min(part[key], experts // 2))
                part["topk_group"] = min(int(part.get("topk_group") or 1), part[key])
    if not total:
        return result, dict(state)
    kept: dict[str, Expr] = {}
    for name, expr in state.items():
        numbered = re.search(r"\.experts\.(\d+)\.", name)
        if names.number(name) is None or (numbered and int(numbered[1]) < experts):
            kept[name] = expr
        elif numbered:
            continue
        elif expr.shape and expr.shape[0] == total and re.search(_ROUTED, name):
            kept[name] = Slice(expr, (range(experts), *full(expr.shape[1:])))
        else:
            kept[name] = expr
    return result, kept
