"""Which rows of which PyTorch matrix a written matrix consists of, told from their values.

A port permutes, joins, cuts and stacks rows, but multiplies along them as PyTorch does.  So a
row of a written matrix is computed where the same row is found in PyTorch's layer, whatever the
architecture, and no table of names is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from torch2mlx.dtypes import to_torch
from torch2mlx.planning.expressions import Expr, Reader
from torch2mlx.planning.functions import Apply
from torch2mlx.planning.plan import Output
from torch2mlx.planning.regions import full

if TYPE_CHECKING:
    import torch

__all__ = ["RowMap", "match_rows"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class RowMap:
    """Where the rows of a layer's matrices are written.

    Attributes:
        outputs: those whose rows were all found.
        missing: names of those whose rows were not.
        places: parameter → (number in `outputs`, row) for each of its rows, -1 where none.
    """

    outputs: tuple[Output, ...]
    missing: tuple[str, ...]
    places: Mapping[str, tuple[Array, Array]]


def match_rows(module: torch.nn.Module, outputs: Sequence[Output], reader: Reader) -> RowMap:
    """Find the rows of written matrices in the parameters of a PyTorch module.

    Args:
        module: with the checkpoint's values in float32.
        outputs: quantized outputs, of that layer.
        reader: of the checkpoint.
    """
    tables = {}
    for name, parameter in module.named_parameters():
        if parameter.dim() >= 2:
            turned = type(_owner(module, name)).__name__ == "Conv1D"  # stored [in, out]
            values = parameter.data.T if turned else parameter.data
            tables[name] = _hashes(values.reshape(-1, values.shape[-1]))
    wanted = []
    for output in outputs:
        expr = _uncast(output.expr)
        values = to_torch(expr.read(full(expr.shape), reader), expr.dtype).float()
        wanted.append(_hashes(values.reshape(-1, values.shape[-1])))
    if not wanted or not tables:
        return RowMap((), tuple(output.name for output in outputs), {})
    owner = np.repeat(np.arange(len(outputs)), [len(w) for w in wanted])
    row = np.concatenate([np.arange(len(w)) for w in wanted])
    keys = _numbered(np.concatenate(wanted))
    stored = _numbered(np.concatenate(list(tables.values())))
    order = np.argsort(keys, kind="stable")
    at = np.minimum(np.searchsorted(keys[order], stored), len(keys) - 1)
    where = order[at]
    hit = keys[where] == stored
    found = np.zeros(len(keys), np.bool_)
    found[where[hit]] = True
    whole = np.array([bool(found[owner == i].all()) for i in range(len(outputs))])
    number = np.cumsum(whole) - 1
    hit &= whole[owner[where]]
    owners = np.where(hit, number[owner[where]], -1)
    rows = np.where(hit, row[where], -1)
    places, start = {}, 0
    for name, table in tables.items():
        part = slice(start, start + len(table))
        if hit[part].any():
            places[name] = (owners[part], rows[part])
        start += len(table)
    return RowMap(
        tuple(o for o, w in zip(outputs, whole, strict=True) if w),
        tuple(o.name for o, w in zip(outputs, whole, strict=True) if not w),
        places,
    )


def _numbered(hashes: Array) -> Array:
    """Numbers that tell the first of several equal rows from the second and so on."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    begin = np.maximum.accumulate(np.where(first, np.arange(len(ordered)), 0))
    result = np.empty_like(hashes)
    occurrence = (np.arange(len(ordered)) - begin).astype(np.uint64)
    result[order] = ordered + occurrence * np.uint64(0x9E3779B97F4A7C15)
    return result


def _owner(module: torch.nn.Module, name: str) -> torch.nn.Module:
    return module.get_submodule(name.rpartition(".")[0])


def _uncast(expr: Expr) -> Expr:
    """The values before they are rounded to the written dtype."""
    while isinstance(expr, Apply) and expr.name.startswith("astype "):
        expr = expr.operands[0]
    return expr


def _hashes(rows: torch.Tensor) -> Array:
    """A number for each row of float32 values, equal for equal rows: uint64 [rows].

    The width counts too: rows of zeros of different matrices are different rows.
    """
    bits = np.ascontiguousarray(rows.detach().cpu().numpy()).view(np.uint32)
    factors = np.random.default_rng(0).integers(1, 2**63, bits.shape[1], dtype=np.uint64) | 1
    result = np.empty(len(bits), np.uint64)
    step = max(1, (1 << 21) // bits.shape[1])
    for start in range(0, len(bits), step):
        part = bits[start : start + step].astype(np.uint64)
        part *= factors
        part ^= part >> np.uint64(29)
        result[start : start + step] = part.sum(1, dtype=np.uint64)
    result += np.uint64(bits.shape[1]) << np.uint64(40)
    return result
