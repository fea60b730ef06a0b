"""Both models on the same inputs, and every output compared."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch2mlx.compiler.codegen import GeneratedModel
from torch2mlx.compiler.dimensions import dimensions
from torch2mlx.compiler.entry_points import CompiledEntry
from torch2mlx.compiler.parity.distance import relative_error
from torch2mlx.compiler.parity.inputs import INTEGERS, STEPS, fresh_inputs, other_sizes
from torch2mlx.compiler.parity.localize import first_difference
from torch2mlx.compiler.parity.running import call_model
from torch2mlx.errors import ParityError

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
    """

    cases: tuple[str, ...]
    worst: float
    limit: float


def check_parity(
    model: Any,
    generated: GeneratedModel,
    entries: Sequence[CompiledEntry],
    module: torch.nn.Module,
    seed: int = 0,
) -> Agreement:
    """Run both on the example, on fresh values and, with dynamic shapes, on other sizes.

    Buffers that the module changes go on from one case to the next, in both.

    Args:
        model: an instance of the generated class, with its weights.
        generated: its code.
        entries: each method, with its example.
        module: the original; its buffers stay as they are.
        seed: of the fresh inputs.

    Raises:
        ParityError: an output or a buffer differs; the text names the first module that does.
    """
    return _Check(model, generated, entries, module).run(seed)


class _Check:
    def __init__(
        self,
        model: Any,
        generated: GeneratedModel,
        entries: Sequence[CompiledEntry],
        module: torch.nn.Module,
    ) -> None:
        self.generated, self.entries = generated, entries
        self.buffers = list(dict.fromkeys(n for e in entries for n in e.graph.states))
        # Running it may change its buffers, which belong to the user.
        self.module = copy.deepcopy(module) if self.buffers else module
        self.model = model
        # Compiled in another dtype, values are compared and not their types.
        self.rounded = any(e.point is not e.original for e in entries)
        types = [w.type for e in entries for w in e.graph.weights]
        types += [i.type for e in entries for i in e.graph.inputs]
        names = {str(t.dtype).removeprefix("torch.") for t in types}
        self.limit = max(LIMITS.get(name, LIMITS["float32"]) for name in names | {"float32"})

    def run(self, seed: int) -> Agreement:
        import torch

        generator = torch.Generator().manual_seed(seed)
        worst, told = 0.0, []
        for entry in self.entries:
            cases = [("example", entry.flat)]
            fresh = self._fresh(entry, generator)
            cases += [("fresh values", fresh)] if fresh is not None else []
            cases += self._others(entry, generator)
            for name, flat in cases:
                text = name if len(self.entries) == 1 else f"{entry.method}: {name}"
                worst = max(worst, self._case(entry, text, flat))
                told.append(text)
        return Agreement(tuple(told), worst, self.limit)

    def _fresh(self, entry: CompiledEntry, generator: torch.Generator) -> list[Any] | None:
        """Other values in the example's sizes; its integers as freely as torch takes them.

        A prompt has as many placeholders as its image has patches: drawn anew, torch refuses it.
        """
        for integers in INTEGERS:
            flat = fresh_inputs(entry.flat, entry.graph, {}, generator, integers)
            before = self._state()
            try:
                self._torch(entry, flat)
            except Exception:  # whatever the user's own code raises
                continue
            finally:
                self._restore(before)
            return flat
        return None

    def _others(
        self, entry: CompiledEntry, generator: torch.Generator
    ) -> list[tuple[str, list[Any]]]:
        """Inputs of other sizes: one a little larger, one smaller, as far as torch takes them.

        Raises:
            ParityError: torch takes no other size, so the extents do not vary after all.
        """
        known = dimensions(entry.graph, entry.exported)
        if not known:
            return []
        found: dict[str, list[Any]] = {}
        refused: Exception | None = None
        for sign in (1, -1):
            for step in STEPS:
                sizes = other_sizes(known, sign, step)
                if sizes is None:
                    continue
                flat = fresh_inputs(entry.flat, entry.graph, sizes, generator)
                before = self._state()
                try:
                    self._torch(entry, flat)
                except Exception as error:  # whatever the user's own code raises
                    refused = error
                    continue
                finally:
                    self._restore(before)
                found[", ".join(f"{k}={v}" for k, v in sizes.items())] = flat
                break
        if not found and refused is not None:
            names = ", ".join(d.name for d in known)
            raise ParityError(
                f"{entry.graph.class_name}: PyTorch itself fails on other sizes of {names}: "
                f"{_first_line(refused)}; make the extent fixed, give its bounds, or derive it, "
                "as 2*length is derived from length"
            )
        return list(found.items())

    def _torch(self, entry: CompiledEntry, flat: Sequence[Any]) -> list[Any]:
        import torch
        from torch.utils import _pytree as pytree

        copies = [
            v.to(own.dtype, copy=True) if isinstance(v, torch.Tensor) else v
            for v, own in zip(flat, entry.original_flat, strict=True)
        ]
        args, kwargs = pytree.tree_unflatten(copies, entry.spec)
        # The module itself is called for `forward`, so that its hooks run.
        call = self.module if entry.method == "forward" else getattr(self.module, entry.method)
        with torch.no_grad():
            outputs = call(*args, **kwargs)
        return pytree.tree_leaves(outputs)

    def _mlx(self, entry: CompiledEntry, flat: Sequence[Any]) -> list[Any]:
        from torch.utils import _pytree as pytree

        args, kwargs = pytree.tree_unflatten(list(flat), entry.spec)
        arguments = self.generated.methods[entry.method]
        return call_model(self.model, entry.method, arguments, args, kwargs)

    def _case(self, entry: CompiledEntry, name: str, flat: list[Any]) -> float:
        title = f"{entry.graph.class_name} ({name})"
        before = self._state()
        expected = [e for e in self._torch(entry, flat) if e is not None]
        try:
            found = self._mlx(entry, flat)
        except Exception as error:  # the generated code is ours, whatever it raises
            raise ParityError(
                f"{title}: the generated model fails: {type(error).__name__}: "
                f"{_first_line(error)}; nothing was written"
            ) from error
        if len(expected) != len(found):
            raise ParityError(
                f"{title}: torch gives {len(expected)} outputs, the generated model {len(found)}"
            )
        pairs = [
            (f"output {i}", e, f) for i, (e, f) in enumerate(zip(expected, found, strict=True))
        ]
        state = self._state()
        pairs += [(f"buffer {n}", *state[n]) for n in self.buffers]
        worst = 0.0
        for label, want, got in pairs:
            distance = relative_error(want, got, self.rounded)
            if not distance <= self.limit:
                self._restore(before)
                where = first_difference(
                    self.module,
                    self.model,
                    self.generated.paths,
                    self.limit,
                    lambda: self._torch(entry, flat),
                    lambda: self._mlx(entry, flat),
                )
                text = (
                    f"{title}: {label} differs from PyTorch: relative L2 error {distance:.2e}, "
                    f"limit {self.limit:.0e}"
                )
                first = f"; the first module that differs is {where}" if where else ""
                raise ParityError(f"{text}{first}; nothing was written")
            worst = max(worst, distance)
        return worst

    def _state(self) -> dict[str, tuple[torch.Tensor, Any]]:
        """Buffers that the methods change, in both models."""
        from mlx.utils import tree_flatten

        if not self.buffers:
            return {}
        arrays = dict(tree_flatten(self.model.parameters()))
        return {
            name: (self.module.get_buffer(name).clone(), arrays[self._key(name)])
            for name in self.buffers
        }

    def _restore(self, state: dict[str, tuple[torch.Tensor, Any]]) -> None:
        for name, (tensor, _) in state.items():
            self.module.get_buffer(name).copy_(tensor)
        arrays = [(self._key(name), array) for name, (_, array) in state.items()]
        if arrays:
            self.model.load_weights(arrays, strict=False)

    def _key(self, buffer: str) -> str:
        weights = self.generated.weights.items()
        return next(key for key, stored in weights if stored.source == buffer)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
