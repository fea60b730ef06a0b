"""Modules without the memory of their weights: built on meta, traced on fake tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from keyword import iskeyword
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = [
    "fake_inputs",
    "fake_weights",
    "keywords_as_names",
    "parameters_on_meta",
    "recurrent_lengths",
    "without_argument_checks",
    "without_needless_moves",
]


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules that are built meanwhile have their parameters on the meta device.

    Buffers keep their values: what is computed in a constructor is in no checkpoint.  A tensor
    is moved when it becomes a parameter, before anything is written to it.
    """
    import torch
    from torch.nn.parameter import is_lazy
    from torch.utils.weak import WeakTensorKeyDictionary

    original = torch.nn.Module.register_parameter
    moved = WeakTensorKeyDictionary()  # one tensor under two names stays one

    def register(module: torch.nn.Module, name: str, param: Any) -> None:
        original(module, name, param)
        if param is None or param.device.type == "meta" or is_lazy(param):
            return
        if param not in moved:
            moved[param] = torch.nn.Parameter(param.to("meta"), param.requires_grad)
        module._parameters[name] = moved[param]

    torch.nn.Module.register_parameter = register  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = original  # type: ignore[method-assign]


@contextmanager
def fake_weights(module: torch.nn.Module, dtype: torch.dtype | None = None) -> Iterator[None]:
    """While it lasts, weights without data are fake tensors on the CPU.

    What `forward` makes itself is then on the same device.

    Args:
        module: is changed in place, and put back.
        dtype: of all floating-point parameters and buffers, which are then fake; None: as they
            are.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    fakes: dict[int, Any] = {}
    replaced: list[tuple[dict[str, Any], str, Any]] = []

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        other = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        if id(tensor) not in fakes:
            made: torch.Tensor = torch.empty(tensor.shape, dtype=other, device="cpu")
            if isinstance(tensor, torch.nn.Parameter):
                made = torch.nn.Parameter(made, tensor.requires_grad and made.is_floating_point())
            fakes[id(tensor)] = made
        found: torch.Tensor = fakes[id(tensor)]
        return found

    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            for inner in module.modules():
                holders: list[dict[str, Any]] = [inner._parameters, inner._buffers]
                for held in holders:
                    for name, tensor in held.items():
                        if tensor is None:
                            continue
                        cast = dtype is not None and tensor.is_floating_point()
                        if tensor.device.type == "meta" or (cast and tensor.dtype != dtype):
                            replaced.append((held, name, tensor))
                            held[name] = fake(tensor)
        yield
    finally:
        for held, name, tensor in replaced:
            held[name] = tensor


@contextmanager
def without_needless_moves() -> Iterator[None]:
    """While it lasts, `Module.to` leaves modules alone that are of that device and dtype.

    Of fake weights it would make others, which torch cannot put in their place.
    """
    import torch

    original = torch.nn.Module.to

    def to(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        asked: Any = torch._C._nn._parse_to(*args, **kwargs)
        device, dtype, _, memory_format = asked
        tensors = [*module.parameters(), *module.buffers()]
        same = memory_format is None and all(
            (device is None or t.device == device)
            and (dtype is None or t.dtype == dtype or not (t.is_floating_point() or t.is_complex()))
            for t in tensors
        )
        return module if same else original(module, *args, **kwargs)

    torch.nn.Module.to = to  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.nn.Module.to = original  # type: ignore[method-assign]


@contextmanager
def keywords_as_names() -> Iterator[None]:
    """While it lasts, a submodule or parameter may be named as a keyword: `heads["class"]`.

    torch.fx writes names into Python code as they are, unless they are no identifiers.
    """
    from torch.fx import graph

    original = graph._format_target

    def format_target(base: str, target: str) -> str:
        for name in target.split("."):
            plain = name.isidentifier() and not iskeyword(name)
            base = f"{base}.{name}" if plain else f"getattr({base}, {name!r})"
        return base

    graph._format_target = format_target
    try:
        yield
    finally:
        graph._format_target = original


@contextmanager
def without_argument_checks() -> Iterator[None]:
    """While it lasts, torch.distributions do not look at the values of their arguments."""
    from torch.distributions import Distribution

    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


@contextmanager
def recurrent_lengths() -> Iterator[None]:
    """While it lasts, recurrent networks on fake tensors keep the length of their input a name.

    Torch follows them step by step to know the shapes of their results, which fixes the length.
    """
    import torch
    from torch._decomp import meta_table

    aten = torch.ops.aten
    operators = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
    kernels = {op: dict(op.py_kernels) for op in operators}
    metas: dict[Any, Any] = {op: meta_table[op] for op in operators if op in meta_table}
    for op in operators:
        meta_table[op] = _recurrent_shapes(None)
        for key, kernel in kernels[op].items():
            op.py_kernels[key] = _recurrent_shapes(kernel)
        op._dispatch_cache.clear()
    try:
        yield
    finally:
        for op in operators:
            del meta_table[op]
            op.py_kernels.update(kernels[op])
            op._dispatch_cache.clear()
        meta_table.update(metas)


def _recurrent_shapes(kernel: Any) -> Any:
    """Results without values of op(input, hx, params, biases?, layers, dropout, train?,
    bidirectional?, batch first?); of tensors that have values those of `kernel`.
    """
    import torch

    def results(x: torch.Tensor, hx: Any, *rest: Any) -> tuple[torch.Tensor, ...]:
        real = type(x) in (torch.Tensor, torch.nn.Parameter) and x.device.type != "meta"
        if real and kernel is not None:
            found: tuple[torch.Tensor, ...] = kernel(x, hx, *rest)
            return found
        states = [hx] if isinstance(hx, torch.Tensor) else list(hx)
        width = states[0].shape[-1] * (2 if rest[5] else 1)
        output = x.new_empty([*x.shape[:-1], width])
        return (output, *(state.new_empty(state.shape) for state in states))

    return results


def fake_inputs(value: Any) -> Any:
    """Arguments whose tensors on the meta device are zeros on the CPU."""
    import torch
    from torch.utils import _pytree as pytree

    def real(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type != "meta":
            return tensor
        return torch.zeros(tensor.shape, dtype=tensor.dtype)

    return pytree.tree_map_only(torch.Tensor, real, value)
