"""PyTorch's own samples, as calls of ATen overloads.

OpInfo describes Python functions; each sample is traced before autograd, where composites are
whole (`aten.linear`, `aten.layer_norm`), and the calls of the wanted overload are taken from
the trace together with their real arguments.  What cannot be used is counted, with the reason.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from table import Sample
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree


@cache
def _entries() -> dict[str, list[Any]]:
    """OpInfo entries by every name under which ATen may know them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    entries: dict[str, list[Any]] = defaultdict(list)
    for entry in op_db:
        names = {entry.name, entry.aten_name, *(alias.name for alias in entry.aliases)}
        names |= {name.removeprefix("nn.functional.") for name in names}
        names |= {name.replace(".", "_") for name in names}
        for name in names:
            if entry not in entries[name]:
                entries[name].append(entry)
    return entries


def entries_for(overload: Any, names: tuple[str, ...]) -> list[Any]:
    """The OpInfo entries whose traces may contain an overload."""
    found: list[Any] = []
    own = getattr(getattr(overload, "overloadpacket", None), "__name__", None)
    for name in (*names, *((own, own.lstrip("_")) if own and own[0] == "_" else (own,))):
        if name in names and name not in _entries():
            raise KeyError(f"OpInfo has no entry {name!r}")
        found += [e for e in _entries().get(name, ()) if e not in found]
    return found


class _Recorder(torch.fx.Interpreter):
    """Runs a trace and keeps the arguments of its calls."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.calls: list[tuple[Any, Sample]] = []

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        # Detached copies: in-place calls that follow must not change the sample.
        kept, named = pytree.tree_map_only(
            torch.Tensor, lambda tensor: tensor.detach().clone(), (args, kwargs)
        )
        self.calls.append((target, Sample(tuple(kept), dict(named))))
        return super().call_function(target, args, kwargs)


def _trace(entry: Any, sample: Any) -> list[tuple[Any, Sample]]:
    leaves, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def function(*given: torch.Tensor) -> Any:
        remaining = iter(given)
        filled = [next(remaining) if isinstance(x, torch.Tensor) else x for x in leaves]
        first, args, kwargs = pytree.tree_unflatten(filled, spec)
        return entry.op(first, *args, **kwargs)

    graph = make_fx(function, pre_dispatch=True)(*tensors)
    recorder = _Recorder(graph)
    recorder.run(*tensors)
    return recorder.calls


@dataclass(frozen=True)
class Harvest:
    """What became of an entry's samples of one dtype.

    Attributes:
        calls: every ATen call in the traces of the samples that were taken.
        offered: how many samples OpInfo has.
        taken: how many were traced: evenly chosen where there are more than the limit.
        unusable: reason → how many samples.
    """

    calls: tuple[tuple[Any, Sample], ...] = ()
    offered: int = 0
    taken: int = 0
    unusable: Mapping[str, int] = field(default_factory=dict)


@cache
def _harvest(name: str, variant: str, dtype: torch.dtype, limit: int) -> Harvest:
    entry = next(e for e in _entries()[name] if e.name == name and e.variant_test_name == variant)
    if dtype not in entry.supported_dtypes("cpu"):
        return Harvest()
    torch.manual_seed(0)
    calls: list[tuple[Any, Sample]] = []
    unusable: Counter[str] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        offered = list(entry.sample_inputs("cpu", dtype, requires_grad=False))
        samples = []
        for sample in offered:
            if _in_mlx((sample.input, sample.args, sample.kwargs)):
                samples.append(sample)
            else:
                unusable[WIDE] += 1
        taken = 0
        for sample in samples[:: max(1, -(-len(samples) // limit))]:
            try:
                calls += _trace(entry, sample)
                taken += 1
            except Exception as error:
                unusable[_reason(error)] += 1
    return Harvest(tuple(calls), len(offered), taken, dict(unusable))


WIDE = "an argument is float64, complex128 or complex32, which MLX lacks"


def _reason(error: Exception) -> str:
    """Why a sample could not be traced, without what differs from one sample to the next."""
    line = next(iter(str(error).strip().splitlines()), "")
    return f"make_fx: {type(error).__name__}: {re.sub(r'[0-9]+', 'N', line)[:100]}"


def _in_mlx(arguments: Any) -> bool:
    """No element type that MLX lacks on its GPU: lowerings refuse these in one place."""
    lacking = {torch.float64, torch.complex128, torch.complex32}
    return not any(
        leaf in lacking if isinstance(leaf, torch.dtype) else getattr(leaf, "dtype", 0) in lacking
        for leaf in pytree.tree_leaves(arguments)
    )


def harvests(
    overload: Any, names: tuple[str, ...], dtype: torch.dtype, limit: int
) -> Iterator[Harvest]:
    """What OpInfo's entries for an overload give in a dtype.

    `CONFORMANCE_LIMIT` in the environment overrides the limit.
    """
    limit = int(os.environ.get("CONFORMANCE_LIMIT", limit))
    for entry in entries_for(overload, names):
        yield _harvest(entry.name, entry.variant_test_name, dtype, limit)


def samples_of(
    overload: Any, names: tuple[str, ...], dtype: torch.dtype, limit: int
) -> Iterator[Sample]:
    """Calls of an overload in OpInfo's samples of a dtype."""
    for harvest in harvests(overload, names, dtype, limit):
        for target, sample in harvest.calls:
            if target is overload:
                yield sample
