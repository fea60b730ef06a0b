"""What a checkpoint is made of, by the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch2mlx.planning.expressions import Expr

__all__ = ["ExpertLayout", "draw_experts", "expert_layouts", "parameters_by_class", "tied_pairs"]

# The first that is found in a name decides, so special parts stand before what contains them.
_CLASSES: tuple[tuple[str, str], ...] = (
    ("shared experts", r"shared_experts?\."),
    ("experts", r"(^|\.)experts\.|switch_mlp\.|moe\.(in|out)put_linear\."),
    ("router", r"(^|\.)(router|gate)(\.|$)|router"),
    ("norm", r"norm|(^|\.)ln_|layer_?norm"),
    ("embedding", r"embed|(^|\.)wte|(^|\.)wpe|token_embd|word_embeddings"),
    ("head", r"lm_head|embed_out|(^|\.)output\.weight|score\."),
    ("attention", r"attn|attention|(^|\.)(q|k|v|o|qkv|out)_proj"),
    ("state space", r"(^|\.)(A_log|dt_|x_proj|in_proj|ssm|mixer|conv1d|mamba)|linear_attn"),
    ("feed-forward", r"mlp|ffn|feed_forward|(^|\.)fc\d|c_fc|c_proj|dense|up_proj|down_proj"),
    ("convolution", r"conv"),
)
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer)\.(\d+)\.")
_NUMBERED = re.compile(r"(?:^|\.)experts\.(\d+)\.")
_STACKED = re.compile(
    r"(?:^|\.)experts\.[A-Za-z_]+(?:\.weight)?$|switch_mlp\.|moe\.(in|out)put_linear\."
)
_BELOW = re.compile(r"(?:^|\.)experts\.mlp\.\w+$")  # all experts as rows of one matrix
_ROUTER = re.compile(r"router(?:\.layer)?\.weight$")
_SHARED = re.compile(r"shared_experts?\.")
_MOST_DRAWN = 16  # boxes of a picture


def parameters_by_class(state: Mapping[str, Expr]) -> dict[str, int]:
    """Number of weights by the kind of module that holds them, largest first."""
    found = Counter[str]()
    for name, expr in state.items():
        kind = next((k for k, pattern in _CLASSES if re.search(pattern, name)), "other")
        found[kind] += expr.size
    return dict(found.most_common())


@dataclass(frozen=True)
class ExpertLayout:
    """How the feed-forward parts of neighbouring layers are built.

    Attributes:
        first, last: numbers of the layers.
        experts: number of routed experts; 0: the layers are dense.
        shared: they have an expert that every token goes to.
        stacked: all experts lie in one tensor; otherwise each has its own.
    """

    first: int
    last: int
    experts: int
    shared: bool
    stacked: bool


def expert_layouts(state: Mapping[str, Expr]) -> tuple[ExpertLayout, ...]:
    """Layers grouped by their experts; () where no layer has any."""
    numbered: dict[int, set[int]] = {}
    stacked: dict[int, int] = {}
    layers, shared, below = set[int](), set[int](), set[int]()
    routed: dict[int, int] = {}
    for name, expr in state.items():
        found = _LAYER.search(name)
        if found is None:
            continue
        layer = int(found[1])
        layers.add(layer)
        number = _NUMBERED.search(name)
        if number is not None:
            numbered.setdefault(layer, set()).add(int(number[1]))
        elif _STACKED.search(name) and len(expr.shape) >= 3:
            stacked[layer] = expr.shape[0]
        elif _BELOW.search(name):
            below.add(layer)
        elif _ROUTER.search(name):
            routed[layer] = expr.shape[0]
        if _SHARED.search(name):
            shared.add(layer)
    stacked |= {layer: routed[layer] for layer in below if layer in routed}
    if not numbered and not stacked:
        return ()
    groups: list[ExpertLayout] = []
    for layer in sorted(layers):
        count = stacked.get(layer, len(numbered.get(layer, ())))
        one = ExpertLayout(layer, layer, count, layer in shared, layer in stacked)
        last = groups[-1] if groups else None
        if last is not None and (last.experts, last.shared, last.stacked) == (
            one.experts, one.shared, one.stacked
        ) and last.last == layer - 1:  # fmt: skip
            groups[-1] = ExpertLayout(last.first, layer, one.experts, one.shared, one.stacked)
        else:
            groups.append(one)
    return tuple(groups)


def draw_experts(layouts: Sequence[ExpertLayout], active: int | None) -> list[str]:
    """A line for each group of layers: filled boxes work for every token."""
    lines = []
    for layout in layouts:
        layers = f"{layout.first}-{layout.last}" if layout.last > layout.first else layout.first
        if not layout.experts:
            lines.append(f"layers {layers:<7} ■  dense")
            continue
        at_work = min(active or 0, layout.experts)
        boxes = "■" * at_work + "□" * (layout.experts - at_work)
        if len(boxes) > _MOST_DRAWN:
            boxes = f"{boxes[:_MOST_DRAWN]}…"
        common = "■ + " if layout.shared else ""
        words = f"{layout.experts} experts" + (f", {at_work} for a token" if at_work else "")
        words += ", one for all" if layout.shared else ""
        words += ", in one tensor" if layout.stacked else ", a tensor each"
        lines.append(f"layers {layers:<7} {common}{boxes}  {words}")
    return lines


def tied_pairs(state: Mapping[str, Expr], tied: bool | None) -> list[str]:
    """Names of output heads that lie beside the embedding although the config ties them."""
    return [name for name in state if tied and re.search(r"(^|\.)lm_head\.weight$", name)]
