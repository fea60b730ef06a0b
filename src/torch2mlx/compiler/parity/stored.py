"""Calls and their outputs in the form in which a certificate keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch2mlx.compiler.codegen import GeneratedModel
from torch2mlx.compiler.codegen.tree import method_name
from torch2mlx.compiler.parity.gate import Agreement
from torch2mlx.compiler.parity.original import Case
from torch2mlx.compiler.parity.running import given_arguments, mlx_array
from torch2mlx.evidence.reference import StoredRun, store_call

__all__ = ["stored_cases", "stored_examples"]


def stored_cases(
    cases: Sequence[Case], generated: GeneratedModel, agreement: Agreement
) -> list[StoredRun]:
    """Every case, with what PyTorch computed.

    Args:
        cases: from `run_original`.
        generated: the model that was compared.
        agreement: of these cases.
    """
    worst: dict[str, float] = {}
    for record in agreement.outputs:
        if record.relative is not None:
            worst[record.case] = max(worst.get(record.case, 0.0), record.relative)
    return [
        _stored(number, case, generated, case.outputs, agreement.limit, worst.get(case.name, 0.0))
        for number, case in enumerate(cases)
    ]


def stored_examples(
    cases: Sequence[Case], generated: GeneratedModel, outputs: Sequence[Any], limit: float
) -> list[StoredRun]:
    """The example of every method, with other outputs than PyTorch's.

    Args:
        cases: from `run_original`.
        generated: the model.
        outputs: of all examples, flat, in the order of the methods.
        limit: relative L2 distance from them that is allowed.
    """
    first = {id(case.entry): case for case in reversed(cases)}  # a method's example is its first
    examples = [case for case in cases if first[id(case.entry)] is case]
    runs, start = [], 0
    for number, case in enumerate(examples):
        stop = start + len(case.outputs)
        runs.append(_stored(number, case, generated, outputs[start:stop], limit, None))
        start = stop
    return runs


def _stored(
    number: int,
    case: Case,
    generated: GeneratedModel,
    outputs: Sequence[Any],
    limit: float,
    relative: float | None,
) -> StoredRun:
    import torch
    from torch.utils import _pytree as pytree

    entry = case.entry
    args, kwargs = pytree.tree_unflatten(list(case.flat), entry.spec)
    return store_call(
        number,
        case.name,
        method_name(entry.method),
        given_arguments(generated.methods[entry.method], args, kwargs),
        [mlx_array(o) if isinstance(o, torch.Tensor) else o for o in outputs],
        limit,
        relative,
    )
