"""The modules of a model that could be quantized: how users name them and what they are for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

__all__ = ["QuantTarget", "close_names", "is_embedding", "is_head", "is_router", "matches"]


@dataclass(frozen=True)
class QuantTarget:
    """A module that could be quantized.

    Attributes:
        path: dotted path in the MLX model ("model.layers.0.self_attn.q_proj").
        kind: MLX class name ("Linear", "Embedding", "SwitchLinear" ...).
        shape: of its weight, `[..., out, in]`.
        port_choice: what the port says of it: False for unquantized, a dict of bits, group_size
            and mode, or True for whatever the user chose.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    port_choice: bool | Mapping[str, Any] = True


def matches(pattern: str, path: str) -> bool:
    """Whether a glob matches a module's full path or one of its dotted suffixes.

    "lm_head" matches "language_model.lm_head", "layers.0.*" every module of layer 0 (and not
    of layer 10), "*_proj" every projection.  Case counts, and `*` crosses dots.
    """
    parts = path.split(".")
    return any(fnmatchcase(".".join(parts[i:]), pattern) for i in range(len(parts)))


def is_router(target: QuantTarget) -> bool:
    """Whether a module chooses among experts, or weighs a shared one.

    In mlx-lm's ports it is a Linear named `gate`, `router` or `shared_expert_gate`, or the
    projection inside a module named `gate` or `router` ("mlp.gate.wg", "router.layer").  A
    `gate_proj` of a feed-forward block is none.
    """
    *parents, name = target.path.split(".")
    if target.kind != "Linear":
        return False
    return name in ("gate", "router", "shared_expert_gate") or parents[-1:] in (
        ["gate"],
        ["router"],
    )


def is_embedding(target: QuantTarget) -> bool:
    """Whether a module is a table of embeddings; on tied models it is the output head too."""
    return target.kind.endswith("Embedding")


def is_head(target: QuantTarget) -> bool:
    """Whether a module maps the last hidden state to the vocabulary, by the ports' names."""
    parts = target.path.split(".")
    if is_embedding(target) or any(part.isdigit() for part in parts):
        return False
    return "lm_head" in parts or parts[-1] in ("output", "embed_out")


def close_names(pattern: str, paths: Iterable[str]) -> str:
    """A hint with names near to a pattern: leaf names, or full paths for a dotted pattern."""
    plain = pattern.replace("*", "").strip(".")
    names = dict.fromkeys(path.rpartition(".")[2] for path in paths)
    found = get_close_matches(plain.removesuffix(".weight").rpartition(".")[2], names, 3, 0.5)
    if not found:
        found = list(names)[:8]
        return f"; the modules are named {', '.join(found)}" if found else ""
    return f"; did you mean {' or '.join(found)}?"
