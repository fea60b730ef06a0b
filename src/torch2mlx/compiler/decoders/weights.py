"""A checkpoint's tensors as parameters of transformers' model, from headers alone.

transformers declares for every model type how names in checkpoints become names of modules, and
how experts are stacked and projections joined.  Those very rules run here on tensors that record
what is done to them, so no second set has to be kept in step.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch.utils import _pytree as pytree

from torch2mlx.architectures.drops import drop_reason
from torch2mlx.errors import PlanError, UnsupportedError
from torch2mlx.planning.expressions import Concat, Expr, Reshape, Slice, Transpose, stack

__all__ = ["fits", "module_state"]


class _Recorded(torch.Tensor):
    """A tensor without data; what torch computes with it becomes an expression."""

    expr: Expr

    @staticmethod
    def __new__(cls, expr: Expr) -> _Recorded:
        made: Any = torch.Tensor._make_wrapper_subclass(
            cls, expr.shape, dtype=getattr(torch, expr.dtype.torch_name)
        )
        made.expr = expr
        return made  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        rule = _RULES.get(func.overloadpacket.__name__)
        if rule is None:
            raise UnsupportedError(
                f"transformers' mapping of this checkpoint computes {func}, which cannot be "
                "planned from headers"
            )
        given = pytree.tree_map_only(_Recorded, lambda t: t.expr, (args, kwargs or {}))
        made = rule(*given[0], **given[1])
        return pytree.tree_map_only(Expr, _Recorded, made)


def _narrow(x: Expr, dim: int, start: int, stop: int, step: int = 1) -> Expr:
    bounds = [range(n) for n in x.shape]
    bounds[dim] = range(start, stop, step)
    return Slice(x, tuple(bounds))


def _slice(x: Expr, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Expr:
    first, last, stride = slice(start, end, step).indices(x.shape[dim])
    return _narrow(x, dim % len(x.shape), first, last, stride)


def _select(x: Expr, dim: int, index: int) -> Expr:
    dim %= len(x.shape)
    index %= x.shape[dim]
    return _squeeze(_narrow(x, dim, index, index + 1), dim)


def _split(x: Expr, size: int, dim: int = 0) -> list[Expr]:
    dim %= len(x.shape)
    extent = x.shape[dim]
    return [_narrow(x, dim, i, min(i + size, extent)) for i in range(0, extent, size)]


def _split_with_sizes(x: Expr, sizes: list[int], dim: int = 0) -> list[Expr]:
    dim %= len(x.shape)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [_narrow(x, dim, a, a + n) for a, n in zip(starts, sizes, strict=True)]


def _cat(operands: list[Expr], dim: int = 0) -> Expr:
    dim %= len(operands[0].shape)
    _require_alike(operands, dim)
    return Concat(tuple(operands), dim)


def _require_alike(operands: list[Expr], dim: int | None = None) -> None:
    """Raise PlanError where torch could not join them: an expert or a part of one is missing."""
    shapes = {tuple(n for i, n in enumerate(e.shape) if i != dim) for e in operands}
    if len(shapes) > 1:
        listed = ", ".join(sorted({str(list(e.shape)) for e in operands}))
        raise PlanError(
            f"tensors that belong together have shapes {listed}; some of their parts are missing"
        )


def _stack(operands: list[Expr], dim: int = 0) -> Expr:
    _require_alike(operands)
    return stack(operands, dim % (len(operands[0].shape) + 1))


def _transpose(x: Expr, first: int, second: int) -> Expr:
    axes = list(range(len(x.shape)))
    axes[first], axes[second] = axes[second], axes[first]
    return Transpose(x, tuple(axes))


def _permute(x: Expr, axes: list[int]) -> Expr:
    return Transpose(x, tuple(a % len(axes) for a in axes))


def _view(x: Expr, shape: list[int]) -> Expr:
    known = 1
    for extent in shape:
        known *= extent if extent != -1 else 1
    return Reshape(x, tuple(x.size // known if n == -1 else n for n in shape))


def _squeeze(x: Expr, dim: int) -> Expr:
    dim %= len(x.shape)
    return Reshape(x, (*x.shape[:dim], *x.shape[dim + 1 :]))


def _unsqueeze(x: Expr, dim: int) -> Expr:
    dim %= len(x.shape) + 1
    return Reshape(x, (*x.shape[:dim], 1, *x.shape[dim:]))


def _same(x: Expr, *_: Any, **__: Any) -> Expr:
    return x


_RULES: dict[str, Any] = {
    "cat": _cat,
    "stack": _stack,
    "split": _split,
    "split_with_sizes": _split_with_sizes,
    "slice": _slice,
    "select": _select,
    "transpose": _transpose,
    "t": lambda x: _transpose(x, 0, 1),
    "permute": _permute,
    "view": _view,
    "_unsafe_view": _view,
    "reshape": _view,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "clone": _same,
    "detach": _same,
    "alias": _same,
    "contiguous": _same,
}


def module_state(model: Any, state: Mapping[str, Expr]) -> dict[str, Expr]:
    """Tensors by the names of the model's parameters and buffers.

    Args:
        model: of transformers, on the meta device.
        state: tensors under their names in the checkpoint; names that the model does not know
            keep theirs.

    Raises:
        PlanError: parts of a joined tensor do not fit together.
        UnsupportedError: a rule computes what cannot be planned.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    rules = get_model_conversion_mapping(model)
    renamings = [r for r in rules if isinstance(r, WeightRenaming)]
    converters = [r for r in rules if isinstance(r, WeightConverter)]
    by_pattern = {p: c for c in converters for p in c.source_patterns}
    expected = model.state_dict()
    prefix = model.base_model_prefix
    result: dict[str, Expr] = {}
    pending: dict[str, Any] = {}
    for name in sorted(state, key=dot_natural_key):
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, expected)
        if renamed not in expected and name in expected:
            renamed, pattern = rename_source_key(name, [], [], prefix, expected)
        if renamed not in expected:
            renamed, pattern = name, None
        if pattern is None:
            result[renamed] = state[name]
            continue
        rule = pending.setdefault(renamed, deepcopy(by_pattern[pattern]))
        rule.add_tensor(renamed, name, pattern, _Recorded(state[name]))
    for first, rule in pending.items():
        for name, made in rule.convert(first, model=model, config=model.config).items():
            tensor = made[0] if isinstance(made, list) else made
            result[name] = tensor.expr
    return result


def fits(model: Any, state: Mapping[str, Expr], config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint has every parameter of a model, in its shape, and none that is unknown.

    Args:
        model: of transformers, on the meta device.
        state: tensors under their names in the checkpoint.
        config: the checkpoint's, which says what may be left out.

    Raises:
        PlanError, UnsupportedError: see `module_state`.
    """
    found = module_state(model, state)
    parameters = list(model.named_parameters(remove_duplicate=False))
    given = {
        id(tensor)
        for name, tensor in parameters
        if name in found and found[name].shape == tuple(tensor.shape)
    }
    known = {name for name, _ in parameters} | {name for name, _ in model.named_buffers()}
    unknown = found.keys() - known
    return all(id(tensor) in given for _, tensor in parameters) and all(
        drop_reason(name, found[name].shape, config) for name in unknown
    )
