"""Adapters as mlx_lm.lora saves them: LoRA, DoRA, and whole layers (`fine_tune_type` "full").

`lora_a` [in, rank], `lora_b` [rank, out] (for experts [experts, rank, in] and [experts, out,
rank]) and `m` [out] lie under the module's path in the MLX model, which is that of the checkpoint
but for stacked experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from torch2mlx.errors import SourceError, UnsupportedError
from torch2mlx.planning.expressions import Expr, Reshape, Slice, Transpose
from torch2mlx.planning.regions import full
from torch2mlx.sources.adapters.merging import LowRank
from torch2mlx.sources.adapters.reading import Changes, Stored

__all__ = ["read_mlx_lm"]

_LEAVES = ("lora_a", "lora_b", "m")
_EXPERT_NAMES = {
    "gate_proj": ("gate_proj", "w1"),
    "up_proj": ("up_proj", "w3"),
    "down_proj": ("down_proj", "w2"),
}


def read_mlx_lm(config: Mapping[str, Any], tensors: Stored, base: Mapping[str, Expr]) -> Changes:
    """What an adapter of mlx-lm changes.

    Args:
        config: adapter_config.json.
        tensors: of the adapter, by their own names.
        base: the state that it was trained on.

    Raises:
        SourceError: the config lacks rank or scale.
        UnsupportedError: another kind of fine-tuning.
    """
    kind = config.get("fine_tune_type", "lora")
    changes = Changes()
    if kind == "full":
        for name, expr in tensors.items():
            old = base.get(name)
            if old is None or old.shape != expr.shape:
                found = "no such tensor" if old is None else list(old.shape)
                changes.problems.append(
                    f"{name}: the adapter brings {list(expr.shape)}, the base has {found}"
                )
            else:
                changes.replaced[name] = expr
        return changes
    if kind not in ("lora", "dora"):
        raise UnsupportedError(f"adapter_config.json: fine_tune_type {kind!r} is not known")
    settings = config.get("lora_parameters")
    settings = settings if isinstance(settings, Mapping) else {}
    rank, scale = settings.get("rank"), settings.get("scale")
    if not isinstance(rank, int) or not isinstance(scale, int | float):
        raise SourceError(
            "adapter_config.json: expected numbers rank and scale in lora_parameters, found "
            f"{rank!r} and {scale!r}"
        )
    modules: dict[str, dict[str, Expr]] = {}
    for name, expr in tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf not in _LEAVES:
            changes.problems.append(f"{name}: expected a name that ends in {', '.join(_LEAVES)}")
            continue
        modules.setdefault(module, {})[leaf] = expr
    for module, parts in modules.items():
        _module(changes, module, parts, (kind, rank, float(scale)), base)
    return changes


def _module(
    changes: Changes,
    module: str,
    parts: Mapping[str, Expr],
    settings: tuple[str, int, float],
    base: Mapping[str, Expr],
) -> None:
    kind, rank, scale = settings
    a, b, magnitude = (parts.get(leaf) for leaf in _LEAVES)
    if a is None or b is None or (kind == "dora") != (magnitude is not None):
        changes.problems.append(f"{module}: not what {kind} consists of: {', '.join(parts)}")
        return
    if len(a.shape) != len(b.shape) or len(a.shape) not in (2, 3):
        changes.problems.append(
            f"{module}: expected two matrices, or two stacks of them, found {list(a.shape)} and "
            f"{list(b.shape)}"
        )
        return
    if len(a.shape) == 3:
        _experts(changes, module, a, b, rank, scale, base)
        return
    name = f"{module}.weight"
    old = base.get(name)
    if a.shape[-1] != rank or b.shape[0] != rank:
        changes.problems.append(
            f"{module}: rank {rank} in adapter_config.json, {a.shape[-1]} and {b.shape[0]} in its "
            "matrices"
        )
    elif old is None:
        close = get_close_matches(name, list(base), n=1, cutoff=0.5)
        hint = f" (the nearest name is {close[0]!r})" if close else ""
        changes.problems.append(f"{name}: the base has no such tensor{hint}")
    elif magnitude is not None and magnitude.shape != old.shape[:1]:
        changes.problems.append(
            f"{module}: magnitudes {list(magnitude.shape)} for a weight of {old.shape[0]} rows"
        )
    elif old.shape == (b.shape[1], a.shape[0]):
        left, right = Transpose(b, (1, 0)), Transpose(a, (1, 0))
        changes.low_rank[name] = LowRank(left, right, scale, magnitude)
    elif old.shape == (a.shape[0], b.shape[1]):  # an embedding
        changes.low_rank[name] = LowRank(a, b, scale, magnitude)
    else:
        changes.problems.append(
            f"{name}: the adapter is for {[b.shape[1], a.shape[0]]}, the base has {list(old.shape)}"
        )


def _experts(
    changes: Changes,
    module: str,
    a: Expr,
    b: Expr,
    rank: int,
    scale: float,
    base: Mapping[str, Expr],
) -> None:
    """One change for each expert of a stack that the checkpoint holds apart."""
    stem, _, leaf = module.rpartition(".")
    block = stem.rpartition(".")[0]
    for expert in range(a.shape[0]):
        names = [f"{block}.experts.{expert}.{n}.weight" for n in _EXPERT_NAMES.get(leaf, ())]
        name = next((n for n in names if n in base), None)
        shape = (b.shape[1], a.shape[2])
        fits = a.shape[1] == b.shape[2] == rank and len(a) == len(b)
        if name is None or not fits or base[name].shape != shape:
            found = "has no such experts" if name is None else f"has {list(base[name].shape)}"
            changes.problems.append(
                f"{module}, expert {expert}: rank {a.shape[1]} of {rank} for {list(shape)}, the "
                f"base {found}"
            )
            return
        left, right = (_one(x, expert) for x in (b, a))
        changes.low_rank[name] = LowRank(left, right, scale)


def _one(stacked: Expr, index: int) -> Expr:
    shape = stacked.shape[1:]
    return Reshape(Slice(stacked, (range(index, index + 1), *full(shape))), shape)
