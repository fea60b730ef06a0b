"""The example's values beside the fake tensors of an export, and what they answer."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode, has_proxy_slot
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.weak import WeakTensorKeyDictionary

from torch2mlx.compiler.forwards import forward_replaced
from torch2mlx.compiler.guards import user_place
from torch2mlx.compiler.specialization.masks import masks_as_in_eager

__all__ = ["ALIKE", "KnownValues", "Question"]

_LARGEST = 1 << 24
"""Elements of a tensor whose value is followed."""

aten = torch.ops.aten

_CHECKS = ("_check_with", "_check_tensor_all_with")
"""What `torch._check` and the like call; the result computes what the original refuses."""

_SIZED = (
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten._unique.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.unique_dim_consecutive.default,
    aten.bincount.default,
    aten.repeat_interleave.Tensor,
)
"""Operators whose result has a size that values decide."""

ALIKE = (
    *(aten.full_like.default, aten.zeros_like.default, aten.ones_like.default),
    *(aten.new_full.default, aten.new_zeros.default, aten.new_ones.default),
    *(aten.empty_like.default, aten.new_empty.default),
)
"""Operators that take no more than the shape and dtype of their first argument."""

_EXACT = (
    *(aten.eq.Scalar, aten.eq.Tensor, aten.ne.Scalar, aten.ne.Tensor),
    *(aten.isnan.default, aten.isinf.default, aten.isfinite.default),
)
"""What may be asked of measurements: whether an element is a certain number, as padding is."""


@dataclass(frozen=True)
class Question:
    """What the code asked of a tensor's values.

    Attributes:
        answer: the example's, as `Tensor.tolist` gives it.
        place: "file:line (code)" of the user's statement.
    """

    answer: Any
    place: str


class KnownValues:
    """Follows values that depend on inputs and buffers alone while a module is traced.

    What depends on weights stays unknown, and so does what follows from measurements (floats
    that are not all whole numbers): its answers would hold for one input only.

    Args:
        module: before it is exported; with data in its buffers.
        leaves: of the example's arguments, in the order of pytree.
    """

    def __init__(self, module: torch.nn.Module, leaves: Sequence[Any]) -> None:
        with_data = all(p.device.type != "meta" for p in module.parameters())
        kept = {
            f"{path}.{name}" if path else name: name not in inner._non_persistent_buffers_set
            for path, inner in module.named_modules(remove_duplicate=False)
            for name in inner._buffers
        }
        # A checkpoint may give buffers that are in its state other values.
        self.buffers = {
            name: buffer.detach().clone()
            for name, buffer in module.named_buffers(remove_duplicate=False)
            if buffer.numel() <= _LARGEST
            and buffer.device.type != "meta"
            and (with_data or not kept[name])
        }
        self.leaves = [v.detach().clone() if isinstance(v, torch.Tensor) else v for v in leaves]
        self.followed = False
        self.questions: list[Question] = []
        self._asked: list[Callable[[], torch.Tensor]] = []

    @classmethod
    def of(cls, module: torch.nn.Module, example: Any) -> KnownValues | None:
        """The example's values; None where they are on the meta device."""
        leaves = pytree.tree_leaves(example)
        tensors = [v for v in leaves if isinstance(v, torch.Tensor)]
        return None if any(v.device.type == "meta" for v in tensors) else cls(module, leaves)

    @contextmanager
    def answering(self, module: torch.nn.Module) -> Iterator[None]:
        """While it lasts, `forward` answers questions, and returns (result, what was asked)."""
        function = module.forward

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.following(module, pytree.tree_leaves((args, kwargs))):
                result = function(*args, **kwargs)
            return result, self.asked()

        call.__wrapped__ = function  # type: ignore[attr-defined]  # has the names of arguments
        with forward_replaced(module, call):
            yield

    @contextmanager
    def following(self, module: torch.nn.Module, leaves: Sequence[Any]) -> Iterator[None]:
        """While it lasts, values are followed from these fake buffers and arguments on."""
        self.followed = True
        self.questions.clear()
        self._asked.clear()
        mode = _Following(self)
        with _disable_current_modes():
            for name, fake in module.named_buffers(remove_duplicate=False):
                if name in self.buffers:
                    mode.values[fake] = _Value(self.buffers[name].clone(), False, False)
            for fake, real in zip(leaves, self.leaves, strict=True):
                if isinstance(real, torch.Tensor):
                    mode.values[fake] = _Value(real.clone(), _is_measured(real), True)
        with masks_as_in_eager(mode.is_given), _Numbers(mode), mode:
            yield

    def asked(self) -> list[torch.Tensor]:
        """What the questions were about, as tensors of the program that is traced."""
        return [about() for about in self._asked]

    def answers(self) -> tuple[tuple[Question, ...] | None, dict[str, torch.Tensor]]:
        """What was asked while the module was traced last, and the buffers behind it.

        None for a program that was called in another way than by `forward`, as that of
        TorchScript is.
        """
        return (tuple(self.questions) if self.followed else None), self.buffers

    def ask(self, answer: Any, about: Callable[[], torch.Tensor]) -> None:
        """Note a question, and what computes its answer; not where torch only checks a value."""
        frames = traceback.walk_stack(sys._getframe(1))
        if any(f.f_code.co_name in _CHECKS for f, _ in frames):
            return
        file, colon, line = user_place().partition(":")
        self.questions.append(Question(answer, f"{Path(file).name}{colon}{line}"))
        self._asked.append(about)


def _uninitialized(value: Any) -> Any:
    """A tensor of the shape and dtype of a fake one."""
    if not isinstance(value, FakeTensor) or not all(type(n) is int for n in value.shape):
        return value
    with _disable_current_modes():
        return torch.empty(value.shape, dtype=value.dtype)


@dataclass(frozen=True, eq=False)
class _Value:
    """What is known of a fake tensor.

    Attributes:
        tensor: its value.
        measured: whether it follows from measurements.
        given: whether it follows from inputs.
        made: operator, arguments, and which of the results it is; None: it was given.
    """

    tensor: torch.Tensor
    measured: bool
    given: bool
    made: tuple[Any, tuple[Any, ...], dict[str, Any], int] | None = None


def _is_measured(value: torch.Tensor) -> bool:
    if value.is_complex():
        return True
    return value.is_floating_point() and not bool((value == value.round()).all())


class _Numbers(TorchFunctionMode):
    """Reads tensors inside of lists that become one tensor, which reads their memory otherwise."""

    def __init__(self, following: _Following) -> None:
        super().__init__()
        self.values = following.values

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (torch.tensor, torch.as_tensor):
            args = (self._numbers(args[0]), *args[1:])
        elif func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            index = args[1]
            index = tuple(map(self._numbers, index)) if isinstance(index, tuple) else index
            args = (args[0], self._numbers(index) if isinstance(index, list) else index, *args[2:])
        return func(*args, **(kwargs or {}))

    def _numbers(self, value: Any) -> Any:
        """A list with numbers for the tensors in it."""
        if not isinstance(value, list | tuple):
            return value
        return pytree.tree_map_only(FakeTensor, self._number, value)

    def _number(self, tensor: torch.Tensor) -> Any:
        return tensor.tolist() if tensor in self.values else tensor


class _Following(TorchDispatchMode):
    """Computes every operator a second time where the values of its arguments are known."""

    supports_higher_order_operators = True

    def __init__(self, known: KnownValues) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known = known
        self.values: Any = WeakTensorKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload) or func.namespace == "prim":
            return func(*args, **kwargs)
        flat, spec = pytree.tree_flatten((args, kwargs))
        if func in ALIKE:
            flat = [_uninitialized(v) for v in flat]
        real = self._real(flat)
        asked = func in _SIZED or func in (aten._local_scalar_dense.default, aten.equal.default)
        exact = func in _EXACT and args[0].is_floating_point()
        measured = not exact and self._is_measured(flat)
        if func is aten.index.Tensor:
            args = self._with_places(*args)
        if real is None or (asked and measured) or torch.Tag.nondeterministic_seeded in func.tags:
            result = func(*args, **kwargs)
            if func._schema.is_mutable:
                self._forget(func, args)
            return result
        given, named = pytree.tree_unflatten(real, spec)
        with _disable_current_modes():
            value = func(*given, **named)
        if func is aten._local_scalar_dense.default:
            self.known.ask(value, lambda: self.traced(args[0]))
            return value
        if func is aten.equal.default:
            self.known.ask(value, lambda: (self.traced(args[0]) == self.traced(args[1])).all())
            return value
        result = self._sized(func, args, value) if func in _SIZED else func(*args, **kwargs)
        known = [self.values.get(leaf) for leaf in flat if isinstance(leaf, FakeTensor)]
        follows = any(value is not None and value.given for value in known)
        pairs = zip(pytree.tree_leaves(result), pytree.tree_leaves(value), strict=True)
        for number, (fake, found) in enumerate(pairs):
            if isinstance(fake, torch.Tensor) and isinstance(found, torch.Tensor):
                made = (func, args, kwargs, number)
                self.values[fake] = _Value(found, measured, follows, made)
        return result

    def is_given(self, tensor: Any) -> bool:
        """Whether a tensor follows from inputs, or is not followed."""
        known = self.values.get(tensor) if isinstance(tensor, FakeTensor) else None
        return known is None or known.given

    def traced(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the program that is traced: itself, or computed once more.

        Inside an operator that is exported as a whole, tensors are none of the program's.
        """
        mode = get_proxy_mode()
        known = self.values.get(tensor)
        if mode is None or known is None or known.made is None:
            return tensor
        if has_proxy_slot(tensor, mode.tracer):
            return tensor
        func, args, kwargs, number = known.made
        args, kwargs = pytree.tree_map_only(torch.Tensor, self.traced, (args, kwargs))
        made: torch.Tensor = pytree.tree_leaves(func(*args, **kwargs))[number]
        return made

    def _real(self, flat: Sequence[Any]) -> list[Any] | None:
        """The arguments with their values; None where one is unknown or large."""
        found = []
        for leaf in flat:
            if isinstance(leaf, torch.SymInt | torch.SymFloat | torch.SymBool):
                return None
            if isinstance(leaf, FakeTensor):
                known = self.values.get(leaf)
                if known is None:
                    return None
                leaf = known.tensor
            if isinstance(leaf, torch.Tensor) and leaf.numel() > _LARGEST:
                return None
            found.append(leaf)
        return found

    def _is_measured(self, flat: Sequence[Any]) -> bool:
        known = [self.values.get(leaf) for leaf in flat if isinstance(leaf, FakeTensor)]
        return any(value is not None and value.measured for value in known)

    def _answer(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The value of a tensor that may be asked for."""
        real = self._real([tensor])
        return None if real is None or self._is_measured([tensor]) else real[0]

    def _forget(self, func: Any, args: Sequence[Any]) -> None:
        """Drop the values of what an operator changes in a way that is unknown."""
        for argument, given in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = self.values.get(given) if isinstance(given, FakeTensor) else None
            if value is None:
                continue
            storage = value.tensor.untyped_storage()._cdata
            for fake, other in list(self.values.items()):
                if other.tensor.untyped_storage()._cdata == storage:
                    del self.values[fake]

    def _sized(self, func: Any, args: Sequence[Any], value: Any) -> Any:
        """A fake result of the size that the values give."""
        x = args[0]
        if func is aten.nonzero.default:
            self._ask_count(x)
        elif func is aten.masked_select.default:
            self._ask_count(args[1])
        elif func is aten.repeat_interleave.Tensor:
            self.known.ask(len(value), lambda: self.traced(x).sum())
        else:
            real = self._answer(x)
            assert real is not None
            with _disable_current_modes():
                whole = real.tolist()
            self.known.ask(whole, lambda: self.traced(x))
        return pytree.tree_map_only(
            torch.Tensor, lambda v: x.new_empty(v.shape, dtype=v.dtype), value
        )

    def _ask_count(self, mask: torch.Tensor) -> int:
        """How many elements of a mask are not zero."""
        real = self._answer(mask)
        assert real is not None
        with _disable_current_modes():
            count = int(torch.count_nonzero(real))
        self.known.ask(count, lambda: torch.count_nonzero(self.traced(mask)))
        return count

    def _with_places(self, x: torch.Tensor, indices: Sequence[Any]) -> tuple[Any, ...]:
        """Arguments of aten.index with as many places as every known mask has."""
        found: list[Any] = []
        for index in indices:
            masked = index is not None and index.dtype in (torch.bool, torch.uint8)
            if not masked or self._answer(index) is None:
                found.append(index)
                continue
            count = self._ask_count(index)
            found += [index.new_empty((count,), dtype=torch.long) for _ in range(index.ndim)]
        return x, found
