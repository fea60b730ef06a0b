"""Tensors of an original release under the names and in the order that transformers has.

A model-parallel release has one file a rank, with the same names in all: wq, wk, wv, w1, w3 and
output are cut along axis 0, wo and w2 along axis 1, tok_embeddings along one or the other.  Rows of
wq and wk hold pairs that rotate together; transformers has the two halves of a head apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch2mlx.errors import SourceError
from torch2mlx.planning.expressions import Concat, Expr, Reshape, Slice, Transpose
from torch2mlx.sources.original.params import Geometry

__all__ = ["joined_ranks", "to_transformers"]

_NAMES = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "attention.wq.weight": "self_attn.q_proj.weight",
    "attention.wk.weight": "self_attn.k_proj.weight",
    "attention.wv.weight": "self_attn.v_proj.weight",
    "attention.wo.weight": "self_attn.o_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "feed_forward.gate.weight": "block_sparse_moe.gate.weight",
    "block_sparse_moe.gate.weight": "block_sparse_moe.gate.weight",
}
_EXPERT = re.compile(r"feed_forward\.experts\.(\d+)\.(w[123])\.weight")
_FUSED = re.compile(r"block_sparse_moe\.(w[123])")
_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
_FREQUENCIES = re.compile(r"(.*\.)?rope\.freqs")  # computed from the config


def joined_ranks(
    where: str, ranks: Sequence[Mapping[str, Expr]], geometry: Geometry
) -> dict[str, Expr]:
    """One state of the states of all ranks.

    Args:
        where: the release, for messages.
        ranks: by rank; with one name in one rank only, each holds other layers instead.
        geometry: of params.json.

    Raises:
        SourceError: a rank lacks a tensor, or the parts do not make the size that is expected.
    """
    names = list(dict.fromkeys(name for rank in ranks for name in rank))
    if len(ranks) == 1 or not any(name in ranks[1] for name in ranks[0]):
        return {name: expr for rank in ranks for name, expr in rank.items()}
    lacking = [(i, n) for n in names for i, rank in enumerate(ranks) if n not in rank]
    if lacking:
        rank_index, name = lacking[0]
        raise SourceError(
            f"{where}: the file of rank {rank_index} lacks {name}, which others have "
            f"({len(lacking)} such); files of different releases are mixed"
        )
    _require_all_ranks(where, ranks, geometry)
    return {name: _joined(where, name, [rank[name] for rank in ranks], geometry) for name in names}


def _require_all_ranks(where: str, ranks: Sequence[Mapping[str, Expr]], geometry: Geometry) -> None:
    name = next((n for n in ranks[0] if n.endswith("attention.wo.weight")), None)
    if name is None:
        return
    whole, part = geometry.heads * geometry.head_width, ranks[0][name].shape[1]
    if part * len(ranks) != whole:
        raise SourceError(
            f"{where}: {len(ranks)} files, but {name} is cut into {whole // max(1, part)} parts: "
            f"{list(ranks[0][name].shape)} of {[geometry.width, whole]}; files of some ranks are "
            "missing or are too many"
        )


def _joined(where: str, name: str, parts: Sequence[Expr], geometry: Geometry) -> Expr:
    first = parts[0]
    if len({p.shape for p in parts}) > 1:
        raise SourceError(
            f"{where}: {name} has shapes {sorted({p.shape for p in parts})} in the files of its "
            "ranks; expected equal parts"
        )
    if len(first.shape) < 2 or _FREQUENCIES.fullmatch(name) or name.endswith("gate.weight"):
        return first  # every rank has the whole
    if name.endswith(("wo.weight", "w2.weight")):
        axis = 1
    elif name == "tok_embeddings.weight":
        axis = 0 if first.shape[1] == geometry.width else 1
    else:
        axis = 0
    return Concat(tuple(parts), axis)


def to_transformers(where: str, state: Mapping[str, Expr], geometry: Geometry) -> dict[str, Expr]:
    """The state under transformers' names.

    Raises:
        SourceError: tensors of unknown names or of other sizes; all in one message.
    """
    result: dict[str, Expr] = {}
    problems = []
    for name, expr in state.items():
        if _FREQUENCIES.fullmatch(name):
            continue
        layer = _LAYER.fullmatch(name)
        leaf = layer[2] if layer else name
        prefix = f"model.layers.{layer[1]}." if layer else ""
        expert, fused = _EXPERT.fullmatch(leaf), _FUSED.fullmatch(leaf)
        if leaf in _NAMES:
            try:
                result[prefix + _NAMES[leaf]] = _rotated(leaf, expr, geometry)
            except ValueError as error:
                problems.append(f"{name}: {error}")
        elif expert:
            result[f"{prefix}block_sparse_moe.experts.{expert[1]}.{expert[2]}.weight"] = expr
        elif fused and geometry.experts and expr.shape[0] % geometry.experts == 0:
            for i, part in enumerate(_experts(fused[1], expr, geometry.experts)):
                result[f"{prefix}block_sparse_moe.experts.{i}.{fused[1]}.weight"] = part
        else:
            problems.append(f"{name} {list(expr.shape)}: not known")
    if problems:
        raise SourceError(
            f"{where}: {len(problems)} tensors are not those of such a release:\n  "
            + "\n  ".join(problems[:12])
            + "\nConvert the Hugging Face version of the model"
        )
    return result


def _experts(leaf: str, fused: Expr, count: int) -> list[Expr]:
    """Experts that lie below each other; w2 as [inner, width]."""
    rows = fused.shape[0] // count
    parts = [
        Slice(fused, (range(i * rows, (i + 1) * rows), range(fused.shape[1]))) for i in range(count)
    ]
    return [Transpose(p, (1, 0)) for p in parts] if leaf == "w2" else list(parts)


def _rotated(leaf: str, expr: Expr, geometry: Geometry) -> Expr:
    """Wq and wk with the halves of each head apart; other tensors as they are."""
    heads = {"attention.wq.weight": geometry.heads, "attention.wk.weight": geometry.key_heads}
    count = heads.get(leaf)
    if count is None:
        return expr
    shape = (count * geometry.head_width, geometry.width)
    if expr.shape != shape:
        raise ValueError(f"{list(expr.shape)}, params.json says {list(shape)}")
    if geometry.head_width % 2:
        raise ValueError(f"heads of {geometry.head_width} numbers, which cannot turn in pairs")
    pairs = (count, geometry.head_width // 2, 2, geometry.width)
    apart = Transpose(Reshape(expr, pairs), (0, 2, 1, 3))
    return Reshape(apart, shape)
