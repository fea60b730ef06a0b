"""The generated model on the original's inputs, and every output compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch2mlx.compiler.codegen import GeneratedModel
from torch2mlx.compiler.entry_points import CompiledEntry
from torch2mlx.compiler.graph import Graph
from torch2mlx.compiler.parity.distance import relative_error
from torch2mlx.compiler.parity.localize import first_difference
from torch2mlx.compiler.parity.original import Case, restored, run_case, set_buffers
from torch2mlx.compiler.parity.running import call_model
from torch2mlx.errors import ParityError
from torch2mlx.evidence.record import OutputRecord
from torch2mlx.messages import first_line

if TYPE_CHECKING:
    import torch

__all__ = ["LIMITS", "Agreement", "check_parity"]

LIMITS = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest relative L2 error by the coarsest dtype of the weights; half types round every step."""


@dataclass(frozen=True)
class Agreement:
    """What was compared.

    Attributes:
        cases: what the inputs were, e.g. "example", "fresh values", "batch=3"; with the method
            where there are several.
        worst: largest relative L2 error over all outputs and cases.
        limit: that it had to keep.
        outputs: every output and changed buffer of every case.
    """

    cases: tuple[str, ...]
    worst: float
    limit: float
    outputs: tuple[OutputRecord, ...] = ()

    def joined(self, other: Agreement) -> Agreement:
        """Both comparisons, under this one's limit."""
        worst = max(self.worst, other.worst)
        outputs = (*self.outputs, *other.outputs)
        return Agreement((*self.cases, *other.cases), worst, self.limit, outputs)


def check_parity(
    model: Any,
    generated: GeneratedModel,
    cases: Sequence[Case],
    original: Callable[[], AbstractContextManager[torch.nn.Module]],
) -> Agreement:
    """Run the generated model on what the original was run on.

    Buffers that the module changes go on from one case to the next, as they did there.

    Args:
        model: an instance of the generated class, with its weights.
        generated: its code.
        cases: from `run_original`.
        original: gives the module with its weights, to find where a difference begins; not
            entered where there is none, so that its weights need not be in memory.

    Raises:
        ParityError: an output or a buffer differs; the text names the first module that does.
    """
    check = _Check(model, generated, cases, original)
    worst = max(check.case(case) for case in cases)
    return Agreement(tuple(case.name for case in cases), worst, check.limit, tuple(check.outputs))


class _Check:
    def __init__(
        self,
        model: Any,
        generated: GeneratedModel,
        cases: Sequence[Case],
        original: Callable[[], AbstractContextManager[torch.nn.Module]],
    ) -> None:
        self.model, self.generated, self.original = model, generated, original
        self.outputs: list[OutputRecord] = []
        entries = list({id(c.entry): c.entry for c in cases}.values())
        # Compiled in another dtype, values are compared and not their types.
        self.rounded = any(e.point is not e.original for e in entries)
        types = [w.type for e in entries for w in e.graph.weights]
        types += [i.type for e in entries for i in e.graph.inputs]
        names = {str(t.dtype).removeprefix("torch.") for t in types}
        self.limit = max(LIMITS.get(name, LIMITS["float32"]) for name in names | {"float32"})

    def case(self, case: Case) -> float:
        """Largest relative L2 error."""
        title = f"{case.entry.graph.class_name} ({case.name})"
        expected, before = case.outputs, self._buffers(case)
        try:
            found = self._run(case.entry, case.flat)
        except Exception as error:  # the generated code is ours, whatever it raises
            raise ParityError(
                f"{title}: the generated model fails: {type(error).__name__}: "
                f"{first_line(error)}; nothing was written"
            ) from error
        if len(expected) != len(found):
            raise ParityError(
                f"{title}: torch gives {len(expected)} outputs, the generated model {len(found)}"
            )
        pairs = [
            (f"output {i}", e, f) for i, (e, f) in enumerate(zip(expected, found, strict=True))
        ]
        state = self._buffers(case)
        pairs += [(f"buffer {n}", want, state[self._key(n)]) for n, want in case.after.items()]
        worst = 0.0
        for label, want, got in pairs:
            distance = relative_error(want, got, self.rounded)
            if not distance <= self.limit:
                self.model.load_weights(list(before.items()), strict=False)
                where = self._first_difference(case)
                text = (
                    f"{title}: {label} differs from PyTorch: relative L2 error {distance:.2e}, "
                    f"limit {self.limit:.0e}"
                )
                first = f"; the first module that differs is {where}" if where else ""
                cause = _cause(case.entry.graph)
                half = self.rounded and self.limit == LIMITS["float16"]
                if half and math.isinf(distance) and not cause:
                    cause = "; float16 ends at 65,504: --dtype bfloat16 or float32 may do"
                raise ParityError(f"{text}{first}{cause}; nothing was written")
            worst = max(worst, distance)
            self.outputs.append(
                OutputRecord(
                    case.name,
                    label,
                    tuple(getattr(want, "shape", ())),
                    str(getattr(want, "dtype", type(want).__name__)).removeprefix("torch."),
                    distance,
                    self.limit,
                )
            )
        return worst

    def _first_difference(self, case: Case) -> str:
        with self.original() as module, restored(module, list(case.before)):
            set_buffers(module, case.before)
            return first_difference(
                module,
                self.model,
                self.generated.paths,
                self.limit,
                lambda: run_case(module, case.entry, case.flat),
                lambda: self._run(case.entry, case.flat),
            )

    def _run(self, entry: CompiledEntry, flat: Sequence[Any]) -> list[Any]:
        from torch.utils import _pytree as pytree

        args, kwargs = pytree.tree_unflatten(list(flat), entry.spec)
        arguments = self.generated.methods[entry.method]
        return call_model(self.model, entry.method, arguments, args, kwargs)

    def _buffers(self, case: Case) -> dict[str, Any]:
        """The generated model's arrays of the buffers that the methods change."""
        from mlx.utils import tree_flatten

        if not case.before:
            return {}
        arrays = dict(tree_flatten(self.model.parameters()))
        return {key: arrays[key] for key in map(self._key, case.before)}

    def _key(self, buffer: str) -> str:
        weights = self.generated.weights.items()
        return next(key for key, stored in weights if stored.source == buffer)


def _cause(graph: Graph) -> str:
    """What in a program itself makes a difference likely."""
    import torch

    seeded = torch.Tag.nondeterministic_seeded
    types = [w.type for w in graph.weights] + [i.type for i in graph.inputs]
    given = {t.dtype for t in types}
    for node in graph.nodes:
        place = f"({node.target} — at {node.origin})"
        if seeded in getattr(node.target, "tags", ()):
            return (
                f"; it draws random numbers {place}, and MLX draws others: call eval(), or make "
                "them an input"
            )
        for half in {torch.float16, torch.bfloat16} - given:
            if any(result is not None and result.dtype == half for result in node.results):
                return (
                    f"; it computes in {half} {place}, though all that it is given is finer: leave "
                    "out torch.autocast, or cast the whole with --dtype"
                )
    return ""
