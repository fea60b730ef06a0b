"""What PyTorch computes: outputs and changed buffers on every case, kept without the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from torch2mlx.compiler.dimensions import dimensions
from torch2mlx.compiler.entry_points import CompiledEntry
from torch2mlx.compiler.parity.inputs import INTEGERS, STEPS, fresh_inputs, other_sizes
from torch2mlx.errors import ParityError
from torch2mlx.messages import first_line

if TYPE_CHECKING:
    import torch

__all__ = [
    "Case",
    "changed_buffers",
    "restored",
    "run_case",
    "run_original",
    "set_buffers",
]


@dataclass(frozen=True, eq=False)
class Case:
    """One call of the original.

    Attributes:
        entry: the method.
        name: what the inputs are, e.g. "fresh values", "encode: batch=3".
        flat: leaves of the inputs.
        before: buffers that the methods change, as they were.
        outputs: leaves of the result but None.
        after: the same buffers afterwards.
    """

    entry: CompiledEntry
    name: str
    flat: list[Any]
    before: Mapping[str, torch.Tensor]
    outputs: list[Any]
    after: Mapping[str, torch.Tensor]


def run_original(
    entries: Sequence[CompiledEntry], module: torch.nn.Module, seed: int = 0
) -> list[Case]:
    """Run a module on the example, on fresh values and, with dynamic shapes, on other sizes.

    Buffers that it changes go on from one case to the next; at the end they are as before.

    Args:
        entries: each method, with its example.
        module: with its weights.
        seed: of the fresh inputs.

    Raises:
        ParityError: torch takes no other size, so the extents do not vary after all.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    names = list(dict.fromkeys(n for e in entries for n in e.graph.states))
    cases = []
    with restored(module, names):
        for entry in entries:
            given = [("example", entry.flat)]
            fresh = _fresh(entry, module, names, generator)
            given += [("fresh values", fresh)] if fresh is not None else []
            given += _others(entry, module, names, generator)
            for name, flat in given:
                before = changed_buffers(module, names)
                # Copies: a buffer that is an output changes with the next call.
                outputs = [
                    o.clone() if isinstance(o, torch.Tensor) else o
                    for o in run_case(module, entry, flat)
                    if o is not None
                ]
                text = name if len(entries) == 1 else f"{entry.method}: {name}"
                after = changed_buffers(module, names)
                cases.append(Case(entry, text, flat, before, outputs, after))
    return cases


def run_case(module: torch.nn.Module, entry: CompiledEntry, flat: Sequence[Any]) -> list[Any]:
    """Leaves of what a method returns, inputs unchanged."""
    import torch
    from torch.utils import _pytree as pytree

    copies = [
        v.to(own.dtype, copy=True) if isinstance(v, torch.Tensor) else v
        for v, own in zip(flat, entry.original_flat, strict=True)
    ]
    args, kwargs = pytree.tree_unflatten(copies, entry.spec)
    # The module itself is called for `forward`, so that its hooks run.
    call = module if entry.method == "forward" else getattr(module, entry.method)
    with torch.no_grad():
        outputs = call(*args, **kwargs)
    return pytree.tree_leaves(outputs)


def _fresh(
    entry: CompiledEntry, module: torch.nn.Module, names: Sequence[str], generator: torch.Generator
) -> list[Any] | None:
    """Other values in the example's sizes; its integers as freely as torch takes them.

    A prompt has as many placeholders as its image has patches: drawn anew, torch refuses it.
    """
    for integers in INTEGERS:
        flat = fresh_inputs(entry.flat, entry.graph, {}, generator, integers)
        before = changed_buffers(module, names)
        try:
            run_case(module, entry, flat)
        except Exception:  # whatever the user's own code raises
            continue
        finally:
            set_buffers(module, before)
        if _is_allowed(entry, flat):
            return flat
    return None


def _is_allowed(entry: CompiledEntry, flat: Sequence[Any]) -> bool:
    """Whether inputs have the values that the code was made for, where it asks for them."""
    if not entry.graph.expectations:
        return True
    from torch2mlx.compiler.specialization import holds, input_values

    return holds(entry.graph, input_values(entry.graph, flat), entry.buffers)


def _others(
    entry: CompiledEntry, module: torch.nn.Module, names: Sequence[str], generator: torch.Generator
) -> list[tuple[str, list[Any]]]:
    """Inputs of other sizes: one a little larger, one smaller, as far as torch takes them."""
    known = dimensions(entry.graph, entry.exported)
    found: dict[str, list[Any]] = {}
    refused: Exception | None = None
    for sign in (1, -1):
        for step in STEPS:
            sizes = other_sizes(known, sign, step) if known else None
            if sizes is None:
                continue
            flat = fresh_inputs(entry.flat, entry.graph, sizes, generator)
            before = changed_buffers(module, names)
            try:
                run_case(module, entry, flat)
            except Exception as error:  # whatever the user's own code raises
                refused = error
                continue
            finally:
                set_buffers(module, before)
            found[", ".join(f"{k}={v}" for k, v in sizes.items())] = flat
            break
    if not found and refused is not None:
        extents = ", ".join(d.name for d in known)
        raise ParityError(
            f"{entry.graph.class_name}: PyTorch itself fails on other sizes of {extents}: "
            f"{first_line(refused)}; make the extent fixed, give its bounds, or derive it, "
            "as 2*length is derived from length"
        )
    return list(found.items())


def changed_buffers(module: torch.nn.Module, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Copies of buffers."""
    return {name: _buffer(module, name).clone() for name in names}


def _buffer(module: torch.nn.Module, name: str) -> torch.Tensor:
    """TorchScript has attributes only, no `get_buffer`."""
    found: torch.Tensor = attrgetter(name)(module)
    return found


def set_buffers(module: torch.nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    """Give buffers other values."""
    import torch

    with torch.no_grad():
        for name, value in values.items():
            _buffer(module, name).copy_(value)


@contextmanager
def restored(module: torch.nn.Module, names: Sequence[str]) -> Iterator[None]:
    """While it lasts, buffers may be changed or replaced, and are then as they were."""
    own = {name: _buffer(module, name) for name in names}
    values = changed_buffers(module, names)
    try:
        yield
    finally:
        for name, tensor in own.items():
            owner, _, leaf = name.rpartition(".")
            setattr(attrgetter(owner)(module) if owner else module, leaf, tensor)
        set_buffers(module, values)
