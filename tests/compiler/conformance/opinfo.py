"""PyTorch's own samples, as calls of ATen overloads.

OpInfo describes Python functions; each sample is traced before autograd, where composites are
whole (`aten.linear`, `aten.layer_norm`), and the calls of the wanted overload are taken from
the trace together with their real arguments.
"""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Iterator
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
    """Runs a trace and keeps the arguments of the calls of one overload."""

    def __init__(self, module: torch.fx.GraphModule, overload: Any) -> None:
        super().__init__(module)
        self.overload = overload
        self.samples: list[Sample] = []

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is self.overload:
            # Detached copies: in-place calls that follow must not change the sample.
            args, kwargs = pytree.tree_map_only(
                torch.Tensor, lambda tensor: tensor.detach().clone(), (args, kwargs)
            )
            self.samples.append(Sample(tuple(args), dict(kwargs)))
        return super().call_function(target, args, kwargs)


def _trace(entry: Any, sample: Any, overload: Any) -> list[Sample]:
    leaves, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def function(*given: torch.Tensor) -> Any:
        remaining = iter(given)
        filled = [next(remaining) if isinstance(x, torch.Tensor) else x for x in leaves]
        first, args, kwargs = pytree.tree_unflatten(filled, spec)
        return entry.op(first, *args, **kwargs)

    graph = make_fx(function, pre_dispatch=True)(*tensors)
    recorder = _Recorder(graph, overload)
    recorder.run(*tensors)
    return recorder.samples


def samples_of(overload: Any, names: tuple[str, ...], dtype: torch.dtype, limit: int) -> Iterator[Sample]:
    """Calls of an overload in OpInfo's samples of a dtype, evenly chosen if there are too many.

    `CONFORMANCE_LIMIT` in the environment overrides the limit.
    """
    limit = int(os.environ.get("CONFORMANCE_LIMIT", limit))
    for entry in entries_for(overload, names):
        if dtype not in entry.supported_dtypes("cpu"):
            continue
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            samples = list(entry.sample_inputs("cpu", dtype, requires_grad=False))
            step = max(1, -(-len(samples) // limit))
            for sample in samples[::step]:
                try:
                    calls = _trace(entry, sample, overload)
                except Exception:  # noqa: BLE001, S112 - not traceable (data-dependent, out=): no case
                    continue
                yield from calls
