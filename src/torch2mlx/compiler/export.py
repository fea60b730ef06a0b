"""An `nn.Module` as a functional ATen program, without touching a weight."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from typing import TYPE_CHECKING, Any

from torch2mlx.compiler.entry_points import Exported
from torch2mlx.compiler.forwards import forward_replaced
from torch2mlx.compiler.guards import Guard, recording_guards, violated_ranges
from torch2mlx.compiler.guesses import guessing
from torch2mlx.compiler.lost_state import lost_state, reads_state
from torch2mlx.compiler.meta import (
    fake_inputs,
    fake_weights,
    keywords_as_names,
    recurrent_lengths,
    without_argument_checks,
    without_needless_moves,
)
from torch2mlx.compiler.reasons import drafted_reasons, reason_of
from torch2mlx.errors import CompileError

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

__all__ = ["decomposed", "export_module", "export_or_guess"]


def export_module(
    module: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    method: str = "forward",
    dtype: torch.dtype | None = None,
) -> ExportedProgram:
    """The program of a module's method: functional, composites (linear, sdpa, norms) kept.

    Modules and inputs may be on the meta device or fake: no weight is read.

    Args:
        module: exported as it is; call `eval()` first for inference.
        args: example of the positional inputs.
        kwargs: example of the keyword inputs.
        dynamic_shapes: as for `torch.export.export`.
        method: to export.
        dtype: as if all floating-point weights were of it; None: as they are.

    Raises:
        CompileError: with every reason that torch gives, and the user's line of each.
    """
    exported, reasons = export_or_guess(
        module, args, kwargs, dynamic_shapes, method, dtype, specialize=False
    )
    if reasons:
        raise CompileError(type(module).__name__, reasons)
    assert exported is not None
    return exported.program


def export_or_guess(
    module: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    method: str = "forward",
    dtype: torch.dtype | None = None,
    specialize: bool = True,
) -> tuple[Exported | None, list[str]]:
    """The program, and the reasons why there can be none.

    With reasons the program is a guess, if there is one: branches on data went one way.  What
    follows them can then be looked through for further reasons.

    Args:
        module: as all others, as for `export_module`.
        args: positional inputs.
        kwargs: keyword inputs.
        dynamic_shapes: of them.
        method: to export.
        dtype: of weights.
        specialize: for the example's values, where sizes and branches depend on those of inputs.
    """
    import torch

    from torch2mlx.compiler.specialization import KnownValues, all_pools, grouped_experts

    example = (tuple(args), dict(kwargs or {}))
    given, arguments = fake_inputs(example)
    known = KnownValues.of(module, example) if specialize else None
    with (
        torch.no_grad(),
        fake_weights(module, dtype),
        without_needless_moves(),
        keywords_as_names(),
        without_argument_checks(),
        recurrent_lengths(),
        grouped_experts(module),
        all_pools(module),
        _as_forward(module, method),
    ):
        with nullcontext() if known is None else known.answering(module):
            program, lost, reasons = _exported(module, given, arguments, dynamic_shapes)
            if program is None and not reasons[0].startswith("dynamic extent"):
                program, reasons = _guessed(module, given, arguments, dynamic_shapes, reasons[0])
        if program is None:
            return None, reasons
        exported = Exported(program, *(known.answers() if known is not None else ()))
        if reasons:
            return exported, reasons
    if lost and reads_state(module, method, lost, args, kwargs or {}):
        reasons = [
            f"{', '.join(lost)}: assigned by forward; register tensors that a module keeps "
            "between calls as buffers, so that the generated model keeps them too"
        ]
        return exported, reasons
    return exported, []


def _exported(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> tuple[ExportedProgram | None, list[str], list[str]]:
    """The program, attributes that its state is lost in, and else the first reason against it."""
    import torch

    from torch2mlx.compiler.specialization import (
        has_unknown_sizes,
        with_masked_writes,
        with_static_sizes,
    )

    guards: Sequence[Guard] = ()
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            _silent(),
            recording_guards() as guards,
        ):
            warnings.simplefilter("always")
            program = torch.export.export(
                module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False
            )
            program = with_masked_writes(program)
            if not has_unknown_sizes(program):
                program = with_static_sizes(program)
            program = decomposed(program)
    except Exception as error:
        return None, [], violated_ranges(str(error), guards) or [reason_of(error)]
    return program, lost_state(module, caught), []


def decomposed(program: ExportedProgram) -> ExportedProgram:
    """The program with functional operators only, composites kept."""
    from torch2mlx.compiler.strides import with_strides_of_values

    with warnings.catch_warnings():
        # Torch copies its own deprecated types.
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        functional: ExportedProgram = program.run_decompositions({})
    return with_strides_of_values(functional)


def _guessed(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_shapes: Any,
    first: str,
) -> tuple[ExportedProgram | None, list[str]]:
    """A program whose branches on data go one way, and where they are; else what torch's draft
    export, which goes on after some failures, has to say.
    """
    import torch

    reasons: list[str] = []
    program: ExportedProgram | None = None
    try:
        with warnings.catch_warnings(), _silent(), guessing(reasons):
            warnings.simplefilter("ignore")
            exported = torch.export.export(
                module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False
            )
            program = decomposed(exported)
    except Exception as error:
        reasons.append(reason_of(error))
        with warnings.catch_warnings(), _silent():
            warnings.simplefilter("ignore")
            reasons += drafted_reasons(module, args, kwargs, dynamic_shapes)
    places = {reason.split(": ")[0] for reason in reasons}
    if not first.startswith(tuple(places)):
        reasons.insert(0, first)
    return program, list(dict.fromkeys(reasons))


class _WithoutGraphs(io.TextIOBase):
    """The error stream without the graphs that export prints where it stops."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        if "def forward(self" not in text:
            self.stream.write(text)
        return len(text)


@contextmanager
def _silent() -> Iterator[None]:
    """Without torch's own logs: what they say is in the reasons."""
    import logging

    from torch._logging._internal import trace_log

    names = ("torch.export", "torch._export", "torch.fx.experimental.symbolic_shapes")
    loud = [trace_log, *map(logging.getLogger, names)]
    before = [log.disabled for log in loud]
    for log in loud:
        log.disabled = True
    try:
        with redirect_stderr(_WithoutGraphs(sys.stderr)):
            yield
    finally:
        for log, state in zip(loud, before, strict=True):
            log.disabled = state


@contextmanager
def _as_forward(module: torch.nn.Module, method: str) -> Iterator[None]:
    """While it lasts, calling the module calls one of its methods.

    Buffers that submodules assign anew are changed in place at the end: torch.export follows
    assignments to buffers of the root only, and drops the others.
    """
    function = getattr(module, method)

    def call(*args: Any, **kwargs: Any) -> Any:
        inner = [m for m in module.modules() if m is not module]
        before = [(m, name, buffer) for m in inner for name, buffer in m._buffers.items()]
        result = function(*args, **kwargs)
        for owner, name, buffer in before:
            now = owner._buffers[name]
            if buffer is None or now is buffer:
                continue
            if now is None or (now.shape, now.dtype) != (buffer.shape, buffer.dtype):
                kind = "None" if now is None else f"{now.dtype} {list(now.shape)}"
                raise ValueError(
                    f"buffer {name} of {type(owner).__name__} becomes {kind}; it must stay "
                    f"{buffer.dtype} {list(buffer.shape)}"
                )
            buffer.copy_(now)
            owner._buffers[name] = buffer
        return result

    call.__wrapped__ = function  # type: ignore[attr-defined]  # has the names of arguments
    with forward_replaced(module, call):
        yield
