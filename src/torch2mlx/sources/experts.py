"""How a checkpoint holds the experts of a layer, and the same in the layout of its family.

Most families store experts apart (`experts.3.gate_proj.weight`); training frameworks and
transformers' own modules hold them in one tensor `experts.gate_up_proj`, gate and up one after the
other or in turns, [experts, 2 * inner, width] or transposed.  Shapes tell which way they lie, the
family whether they take turns; `--expert-layout` says so where a checkpoint differs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch2mlx.errors import OptionError, SourceError
from torch2mlx.planning.expressions import (
    Concat,
    Expr,
    Reshape,
    Slice,
    Transpose,
    stack,
)
from torch2mlx.planning.regions import full

__all__ = ["EXPERT_LAYOUTS", "usual_experts"]

EXPERT_LAYOUTS = (
    "concatenated", "interleaved", "concatenated-transposed", "interleaved-transposed",
)  # fmt: skip
"""Of `experts.gate_up_proj`; transposed is [experts, width, 2 * inner]."""

# Families that store experts apart: the names of gate, up and down, and the block they are in
# where transformers' modules call it otherwise.
_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
_NUMBERED = ("w1", "w3", "w2")
_PROJECTION_FAMILIES = (
    "qwen2_moe", "qwen3_moe", "qwen3_next", "olmoe", "flex_olmo", "deepseek_v2", "deepseek_v3",
    "glm4_moe", "ernie4_5_moe", "jamba", "dots1", "kimi_k2",
)  # fmt: skip
_NUMBERED_FAMILIES = ("mixtral", "phimoe", "minimax", "minimax_m2")
_APART: dict[str, tuple[tuple[str, str, str], str | None]] = {
    **dict.fromkeys(_PROJECTION_FAMILIES, (_PROJECTIONS, None)),
    **dict.fromkeys(_NUMBERED_FAMILIES, (_NUMBERED, "block_sparse_moe")),
}
_GRANITES = ("granitemoe", "granitemoeshared", "granitemoehybrid")
# Families that store them together, and how.
_TOGETHER = {
    "gpt_oss": "interleaved-transposed",
    "llama4": "concatenated-transposed",
    "llama4_text": "concatenated-transposed",
    "qwen3_5_moe": "concatenated",
    "qwen3_vl_moe": "concatenated",
    **dict.fromkeys(_GRANITES, "concatenated"),
}
# Names that checkpoints have otherwise than transformers' modules: of both, and inside the block.
_TENSORS = dict.fromkeys(_GRANITES, ("input_linear.weight", "output_linear.weight"))
_INSIDE = {
    "phimoe": {"router.weight": "gate.weight"},
    "ernie4_5_moe": {
        "gate.moe_statics.e_score_correction_bias": "moe_statics.e_score_correction_bias"
    },
    **{family: {"router.weight": "router.layer.weight"} for family in _GRANITES},
}
_FUSED = re.compile(r"(?P<block>.+)\.experts\.gate_up_proj(?P<leaf>(\.weight)?)")
_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def usual_experts(
    state: Mapping[str, Expr], config: Mapping[str, Any], layout: str | None = None
) -> dict[str, Expr]:
    """The state with fused experts in the layout that the family's checkpoints have.

    Args:
        state: tensors under their Hugging Face names.
        config: config.json.
        layout: one of `EXPERT_LAYOUTS`; None: what shapes and family tell.

    Raises:
        OptionError: a layout is given and nothing is fused, or the family's own is not known.
        SourceError: experts are missing, or have other sizes than config.json says.
    """
    fused = [m for name in state if (m := _FUSED.fullmatch(name))]
    model_type = str(config.get("model_type"))
    if layout is not None and layout not in EXPERT_LAYOUTS:
        raise OptionError(f"--expert-layout {layout}: choose one of {', '.join(EXPERT_LAYOUTS)}")
    if not fused:
        if layout is not None:
            raise OptionError(
                f"--expert-layout {layout}: the checkpoint has no experts.gate_up_proj; leave it "
                "out"
            )
        return dict(state)
    if layout is None and model_type not in _APART and model_type not in _TENSORS:
        return dict(state)
    text = config.get("text_config")
    settings = {**config, **(text if isinstance(text, Mapping) else {})}
    result = dict(state)
    for match in fused:
        _one_layer(result, match, model_type, settings, layout)
    block = _APART[model_type][1] if model_type in _APART else None
    renamed = _INSIDE.get(model_type, {})
    return {_in_block(n, block, renamed, fused): e for n, e in result.items()}


def _one_layer(
    state: dict[str, Expr],
    match: re.Match[str],
    model_type: str,
    settings: Mapping[str, Any],
    layout: str | None,
) -> None:
    experts = f"{match['block']}.experts"
    names = f"{experts}.gate_up_proj{match['leaf']}", f"{experts}.down_proj{match['leaf']}"
    together, down = state[names[0]], state.get(names[1])
    if down is None:
        raise SourceError(f"{names[1]}: missing beside {names[0]}; download the checkpoint again")
    width = settings.get("hidden_size")
    transposed = _is_transposed(names[0], together, down, width, layout)
    if transposed:
        together, down = (Transpose(e, (0, 2, 1)) for e in (together, down))
    count = next((settings[k] for k in _COUNTS if isinstance(settings.get(k), int)), None)
    inner = together.shape[1] // 2
    if count not in (None, together.shape[0]) or down.shape != (together.shape[0], width, inner):
        raise SourceError(
            f"{names[0]}: {list(state[names[0]].shape)} and {list(state[names[1]].shape)} are not "
            f"{count} experts of width {width}; experts are missing, or config.json is another "
            "model's"
        )
    turns = layout is not None and layout.startswith("interleaved")
    halves = [_half(together, i, turns) for i in (0, 1)]
    if model_type in _APART:
        del state[names[0]], state[names[1]]
        for leaf, part in zip(_APART[model_type][0], (*halves, down), strict=True):
            for i in range(part.shape[0]):
                one = Slice(part, (range(i, i + 1), *full(part.shape[1:])))
                state[f"{experts}.{i}.{leaf}.weight"] = Reshape(one, part.shape[1:])
        return
    native = _TOGETHER.get(model_type)
    if native is None:
        raise OptionError(
            f"--expert-layout: how {model_type!r} checkpoints usually hold experts is not known"
        )
    joined = _joined(halves, native.startswith("interleaved"))
    if native.endswith("transposed"):
        joined, down = (Transpose(e, (0, 2, 1)) for e in (joined, down))
    if model_type in _TENSORS:
        del state[names[0]], state[names[1]]
        first, second = _TENSORS[model_type]
        names = f"{match['block']}.{first}", f"{match['block']}.{second}"
    state[names[0]], state[names[1]] = joined, down
    bias = state.get(f"{experts}.gate_up_proj_bias")
    if bias is not None:
        parts = [_half(bias, i, turns) for i in (0, 1)]
        state[f"{experts}.gate_up_proj_bias"] = _joined(parts, native.startswith("interleaved"))


def _is_transposed(name: str, together: Expr, down: Expr, width: Any, layout: str | None) -> bool:
    if len(together.shape) != 3 or len(down.shape) != 3:
        raise SourceError(f"{name}: {list(together.shape)}; expected [experts, 2 * inner, width]")
    if layout is not None:
        return layout.endswith("transposed")
    inner = down.shape[1] * down.shape[2] // max(1, int(width or 1))
    return together.shape[1:] == (width, 2 * inner) and down.shape[1:] == (inner, width)


def _half(together: Expr, which: int, turns: bool) -> Expr:
    """Gate (0) or up (1) along axis 1."""
    count = together.shape[1]
    rows = range(which, count, 2) if turns else range(which * count // 2, (which + 1) * count // 2)
    ranges = list(full(together.shape))
    ranges[1] = rows
    return Slice(together, tuple(ranges))


def _joined(halves: list[Expr], turns: bool) -> Expr:
    if not turns:
        return Concat(tuple(halves), 1)
    first = halves[0].shape
    return Reshape(stack(halves, 2), (first[0], first[1] * 2, *first[2:]))


def _in_block(
    name: str, block: str | None, renamed: Mapping[str, str], fused: Iterable[re.Match[str]]
) -> str:
    """A name of a layer with experts as checkpoints have it: block and router called otherwise."""
    for match in fused:
        own = match["block"]
        if name.startswith(f"{own}."):
            inside = name.removeprefix(f"{own}.")
            if block is not None and not own.endswith(block):
                own = f"{own.rpartition('.')[0]}.{block}"
            return f"{own}.{renamed.get(inside, inside)}"
    return name
