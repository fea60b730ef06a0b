"""Forward passes that wait for each other at every matrix that is to be quantized.

Each pass is a batch that runs through one layer in a thread of its own, one thread at a time.
Where it is about to multiply by a watched matrix it waits.  Once all passes that come by there
wait, the matrix is quantized with all their inputs, and they go on with the new values: each
layer is computed once, every matrix sees what the quantized ones before it leave, and of the
activations only those exist that a pass holds at that point.

Where those would be too many, only some passes wait.  The others end as soon as their inputs are
used and begin anew when they are needed again: the same values, computed more often.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Unit", "Units", "Uses", "Visit", "run_in_lockstep"]

_LINEAR = (torch.nn.functional.linear, torch.ops.aten.linear.default)  # the latter in programs
_NUMBERED_EXPERT = re.compile(r"experts?\.(\d+)\.")


@dataclass(frozen=True, order=True)
class Unit:
    """A matrix that inputs are multiplied by: a parameter, or one expert's part of a stack.

    Attributes:
        expert: number of the expert, -1 for a matrix that every token meets.
        order: of the parameter in its module.
        parameter: its name.
        start, rows: the rows [start, start + rows) of the parameter as a matrix.
        transposed: the parameter is stored [in, out].
    """

    expert: int
    order: int
    parameter: str
    start: int
    rows: int
    transposed: bool = False


class Units:
    """The matrices of one module, found by where their values lie.

    Args:
        module: its parameters are watched.
        names: those that may be quantized.
    """

    def __init__(self, module: torch.nn.Module, names: Sequence[str]) -> None:
        wanted = set(names)
        self._module = module
        self._places = {
            p.untyped_storage().data_ptr(): (order, name, p)
            for order, (name, p) in enumerate(module.named_parameters())
            if name in wanted
        }

    def find(self, weight: Tensor, transposed: bool) -> Unit | None:
        """The unit of a matrix [out, in], or [in, out] for `transposed`; None if not watched."""
        place = self._places.get(weight.untyped_storage().data_ptr())
        if place is None or weight.dim() != 2:
            return None
        order, name, parameter = place
        if transposed:
            whole = weight.shape == parameter.shape and weight.stride() == parameter.stride()
            return Unit(-1, order, name, 0, weight.shape[1], True) if whole else None
        width = parameter.shape[-1]
        offset = weight.storage_offset() - parameter.storage_offset()
        if weight.shape[1] != width or weight.stride() != (width, 1) or offset % width:
            return None
        start, rows = offset // width, weight.shape[0]
        numbered = _NUMBERED_EXPERT.search(name)
        expert = start // rows if parameter.dim() > 2 else int(numbered[1]) if numbered else -1
        return Unit(expert, order, name, start, rows)

    def owner(self, value: Any) -> str | None:
        """Name of the watched parameter that a value is, or is a view of."""
        if not isinstance(value, torch.Tensor) or value.device.type == "meta":
            return None
        place = self._places.get(value.untyped_storage().data_ptr())
        return None if place is None else place[1]

    def release(self, name: str) -> None:
        """Give up the memory of a parameter that no pass needs any more."""
        parameter = self._module.get_parameter(name)
        del self._places[parameter.untyped_storage().data_ptr()]
        parameter.data = parameter.data.new_empty(0)

    def experts(self) -> list[Unit]:
        """One unit for each expert of each watched parameter."""
        found = []
        for order, name, parameter in self._places.values():
            numbered = _NUMBERED_EXPERT.search(name)
            if parameter.dim() == 3:
                rows = parameter.shape[1]
                found += [Unit(i, order, name, i * rows, rows) for i in range(parameter.shape[0])]
            elif numbered:
                found.append(Unit(int(numbered[1]), order, name, 0, parameter.shape[0]))
        return found

    def weight(self, unit: Unit) -> Tensor:
        """The values of a unit [out, in], a view of the parameter."""
        values = self._module.get_parameter(unit.parameter).data
        if unit.transposed:
            return values.T
        return values.reshape(-1, values.shape[-1])[unit.start : unit.start + unit.rows]


@dataclass(frozen=True)
class Visit:
    """A matrix that passes wait at.

    Attributes:
        unit: the matrix.
        inputs: yields for each group what its passes bring, float32 [tokens, in]; None of a pass
            that does not come by.  May be called once; groups that do not wait run meanwhile.
        same: the inputs are those of the visit before, in all passes.
        complete: every pass waits here, so none will come by an earlier matrix again.
    """

    unit: Unit
    inputs: Callable[[], Iterator[list[Tensor | None]]]
    same: bool = False
    complete: bool = False


@dataclass
class _Pass:
    run: Callable[[], Any]
    units: Units
    solved: set[Unit]
    waiting: tuple[Unit, Tensor] | None = None
    result: Any = None
    error: BaseException | None = None
    done: bool = False
    _go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _stop: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _thread: threading.Thread | None = None
    _cancelled: bool = False

    def advance(self) -> None:
        """Run until the next unit or the end."""
        self.waiting = None
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        self._go.release()
        self._stop.acquire()
        if self.error is not None:
            raise self.error

    def cancel(self) -> None:
        if self._thread is not None and not self.done:
            self._cancelled = True
            self._go.release()
            self._thread.join()

    def _work(self) -> None:
        self._go.acquire()
        try:
            with torch.no_grad(), _Watch(self):
                self.result = self.run()
        except _Cancelled:
            pass
        except BaseException as error:  # raised again by the scheduler's thread
            self.error = error
        finally:
            self.done = True
            self._stop.release()

    def reach(self, weight: Tensor, inputs: Tensor, transposed: bool) -> None:
        unit = self.units.find(weight, transposed)
        if unit is None or unit in self.solved:
            return
        self.waiting = (unit, inputs)
        self._stop.release()
        self._go.acquire()
        if self._cancelled:
            raise _Cancelled


class _Cancelled(BaseException):
    """Ends the thread of a pass that is no longer needed."""


class _Watch(TorchFunctionMode):
    """Tells a pass of each product with a matrix, just before it is computed."""

    def __init__(self, owner: _Pass) -> None:
        super().__init__()
        self._owner = owner

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _LINEAR:
            inputs = args[0] if args else kwargs["input"]
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            self._owner.reach(weight, inputs, False)
        elif func is torch.addmm and len(args) == 3:  # GPT-2's Conv1D
            self._owner.reach(args[2], args[1], True)
        return func(*args, **kwargs)


class _Count(TorchFunctionMode):
    """Counts what a pass does with each watched parameter."""

    def __init__(self, units: Units) -> None:
        super().__init__()
        self.products: Counter[str] = Counter()
        self.others: set[str] = set()
        self._units = units

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") != "__get__":  # of .shape, .dtype ...
            for value in (*args, *kwargs.values()):
                if name := self._units.owner(value):
                    if func in _LINEAR:
                        self.products[name] += 1
                    else:
                        self.others.add(name)
        return func(*args, **kwargs)


@dataclass(frozen=True)
class Uses:
    """What a forward pass does with watched parameters.

    Attributes:
        products: how often it multiplies by each, or by a part of it.
        others: those that it uses for something else too.
    """

    products: Mapping[str, int]
    others: frozenset[str]

    @classmethod
    def of(cls, run: Callable[[], Any], units: Units) -> Uses:
        """Run a pass and count."""
        with torch.no_grad(), _Count(units) as count:
            run()
        return cls(count.products, frozenset(count.others))

    @property
    def once(self) -> set[str]:
        """Those that are multiplied by once and used for nothing else."""
        return {n for n, times in self.products.items() if times == 1 and n not in self.others}


def run_in_lockstep(
    groups: Sequence[Sequence[Callable[[], Any]]],
    units: Sequence[Units],
    visit: Callable[[Visit], None],
    waiting: int | None = None,
) -> list[list[Any]]:
    """Run forward passes together.

    Args:
        groups: the passes; those of a group belong together, one through each module.
        units: of the modules that the passes of a group run.
        visit: called at each unit before any pass multiplies by it, once for each unit.
        waiting: groups that may wait at a time; one does in any case.  None: all.  All wait at
            experts, which some passes do not meet.

    Returns:
        what the passes return, by group.
    """
    return _Lockstep(groups, units, len(groups) if waiting is None else waiting).run(visit)


class _Lockstep:
    def __init__(
        self,
        groups: Sequence[Sequence[Callable[[], Any]]],
        units: Sequence[Units],
        waiting: int,
    ) -> None:
        self.groups = groups
        self.units = units
        self.waiting = max(1, waiting)
        self.solved: set[Unit] = set()
        self.kept: list[list[_Pass]] = []

    def run(self, visit: Callable[[Visit], None]) -> list[list[Any]]:
        """All passes to their ends."""
        before: list[Tensor | None] = []
        try:
            while True:
                waiting = [each for each in self._passes() if each.waiting is not None]
                unit = _next_unit(waiting) if waiting else None
                if len(self.kept) < len(self.groups) and (
                    len(self.kept) < self.waiting or unit is None or unit.expert >= 0
                ):
                    self.kept.append(self._begun(self.groups[len(self.kept)]))
                    continue
                if unit is None:
                    return [[each.result for each in group] for group in self.kept]
                inputs = [_brought(each, unit) for each in self._passes()]
                # Tensors are kept until the next visit, so an equal place means the same values.
                same = [_place(value) for value in inputs] == [_place(value) for value in before]
                all_wait = len(self.kept) == len(self.groups)
                complete = all_wait and all(value is not None for value in inputs)
                visit(Visit(unit, partial(self._inputs, unit), same, complete))
                before = inputs
                self.solved.add(unit)
                for each in waiting:
                    if each.waiting is not None and each.waiting[0] == unit:
                        each.advance()
        finally:
            for each in self._passes():
                each.cancel()

    def _passes(self) -> list[_Pass]:
        return [each for group in self.kept for each in group]

    def _begun(self, group: Sequence[Callable[[], Any]]) -> list[_Pass]:
        """Passes that have come to the first unit that is not solved, or to their ends."""
        passes = [_Pass(run, own, self.solved) for run, own in zip(group, self.units, strict=True)]
        try:
            for each in passes:
                each.advance()
        except BaseException:
            for each in passes:
                each.cancel()
            raise
        return passes

    def _inputs(self, unit: Unit) -> Iterator[list[Tensor | None]]:
        for group in self.kept:
            yield [_flat(_brought(each, unit)) for each in group]
        for runs in self.groups[len(self.kept) :]:
            passes = self._begun(runs)
            try:
                yield [_flat(_brought(each, unit)) for each in passes]
            finally:
                for each in passes:
                    each.cancel()


def _brought(each: _Pass, unit: Unit) -> Tensor | None:
    return each.waiting[1] if each.waiting is not None and each.waiting[0] == unit else None


def _flat(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.reshape(-1, value.shape[-1])


def _place(value: Tensor | None) -> tuple[int, int, int] | None:
    return None if value is None else (value.data_ptr(), value.numel(), value._version)


def _next_unit(waiting: Sequence[_Pass]) -> Unit:
    """The unit to be quantized next.

    A matrix that every token meets waits for all passes.  Experts are met by some passes only,
    in the order of their numbers, so the lowest one will not be met by any other pass.
    """
    units = {each.waiting[0] for each in waiting if each.waiting is not None}
    experts = [unit for unit in units if unit.expert >= 0]
    return min(experts or units)
