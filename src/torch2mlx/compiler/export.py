"""An `nn.Module` as a functional ATen program, without touching a weight."""

from __future__ import annotations

import io
import re
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.compiler.entry_points import Exported
from torch2mlx.compiler.guards import Guard, recording_guards, violated_ranges
from torch2mlx.compiler.guesses import guessing
from torch2mlx.compiler.meta import (
    fake_inputs,
    fake_weights,
    keywords_as_names,
    without_argument_checks,
    without_needless_moves,
)
from torch2mlx.errors import CompileError

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

__all__ = ["decomposed", "export_module", "export_or_guess"]

_PACKAGE = str(Path(__file__).parents[1])
_STANDARD_LIBRARY = sysconfig.get_path("stdlib")


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
    if lost and _reads_state(module, method, lost, args, kwargs or {}):
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
        return None, [], violated_ranges(str(error), guards) or [_reason(error)]
    return program, _lost_state(module, caught), []


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
        reasons.append(_reason(error))
        with warnings.catch_warnings(), _silent():
            warnings.simplefilter("ignore")
            reasons += _drafted(module, args, kwargs, dynamic_shapes)
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
    before = vars(module).get("forward")
    vars(module)["forward"] = call
    try:
        yield
    finally:
        del vars(module)["forward"]
        if before is not None:
            vars(module)["forward"] = before


def _lost_state(module: torch.nn.Module, caught: Iterable[warnings.WarningMessage]) -> list[str]:
    """Attributes with state that export loses, which torch only warns of.

    Other warnings are given on.
    """
    lost: list[str] = []
    for warning in caught:
        text = str(warning.message)
        if "assigned during export" not in text:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
            continue
        found = dict.fromkeys(re.findall(r"self\.([\w.]*\w)", text))
        lost += [name for name in found if not _is_registered(module, name)]
    return lost


def _reads_state(
    module: torch.nn.Module,
    method: str,
    names: Sequence[str],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> bool:
    """Whether attributes that a call leaves behind change what the next one computes.

    Without data in the weights nobody knows.
    """
    import torch
    from torch.utils import _pytree as pytree

    leaves, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
    tensors = [*module.parameters(), *(v for v in leaves if isinstance(v, torch.Tensor))]
    if any(t.device.type == "meta" for t in tensors):
        return True
    owners = [(module.get_submodule(n.rpartition(".")[0]), n.rpartition(".")[2]) for n in names]
    before = [(owner, name, getattr(owner, name)) for owner, name in owners]
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]

    def outputs(step: float) -> list[Any]:
        for buffer, value in buffers:
            buffer.copy_(value)
        given = [v.clone() if isinstance(v, torch.Tensor) else v for v in leaves]
        given = [
            v + step if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in given
        ]
        torch.manual_seed(0)
        positional, named = pytree.tree_unflatten(given, spec)
        return pytree.tree_leaves(getattr(module, method)(*positional, **named))

    try:
        with torch.random.fork_rng(), torch.no_grad():
            first, _, again = (outputs(step) for step in (0.0, 0.5, 0.0))
    except Exception:  # whatever the user's own code raises
        return True
    finally:
        for buffer, value in buffers:
            with torch.no_grad():
                buffer.copy_(value)
        for owner, name, value in before:
            setattr(owner, name, value)
    pairs = zip(first, again, strict=True)
    return not all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) if isinstance(a, torch.Tensor) else a == b
        for a, b in pairs
    )


def _is_registered(module: torch.nn.Module, name: str) -> bool:
    """Whether an attribute only lists parameters and buffers, as those of `nn.LSTM` do, which
    export replaces while it runs.
    """
    from torch.utils import _pytree as pytree

    owner, _, attribute = name.rpartition(".")
    known = {id(t) for t in (*module.parameters(), *module.buffers())}
    leaves = pytree.tree_leaves(getattr(module.get_submodule(owner), attribute))
    return all(id(leaf) in known for leaf in leaves)


def _drafted(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> list[str]:
    from torch.export import draft_export

    try:
        program = draft_export(module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
        failures = program._report.failures  # type: ignore[attr-defined]
    except Exception:
        # The export's own error says the first reason; draft export adds to it where it can.
        return []
    reasons = []
    for failure in failures:
        data: dict[str, Any] = failure.data
        place = _user_frame(data.get("stack") or data.get("user_stack") or [])
        what = failure.failure_type.name.lower().replace("_", " ")
        detail = data.get("expr") or data.get("op") or data.get("reason") or ""
        reasons.append(f"{place}: {what} {detail}".rstrip())
    return reasons


def _user_frame(stack: Any) -> str:
    """`file:line` of the innermost frame outside torch in a stack of dicts or strings."""
    for frame in reversed(list(stack)):
        if isinstance(frame, Mapping):
            name = str(frame.get("filename") or "")
            if name.isdigit() or not name:
                name = str(frame.get("name") or "")
            if name and not _is_foreign(name):
                return f"{name}:{frame.get('line')}"
    return "forward"


def _reason(error: BaseException) -> str:
    """One line: the user's file and line, and what torch says."""
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if not f.filename.startswith(_PACKAGE) and not _is_foreign(f.filename)
    ]
    text = str(error)
    user = re.findall(r'File "([^"]+)", line (\d+), in', text)
    named = [(n, line) for n, line in user if not (n.startswith(_PACKAGE) or _is_foreign(n))]
    # The first non-empty line is torch's sentence; the rest are logs and suggestions.
    message = next((line.strip() for line in text.splitlines() if line.strip()), "")
    message = message or type(error).__name__
    unknown = re.match(r"Found <class '([^']+)'> in (\w+), which is not a known type", message)
    if unknown:
        message = (
            f"{unknown[2]}: torch.export does not know what {unknown[1]} holds; for a "
            "dataclass call torch.export.register_dataclass first, or use tuples and dicts"
        )
    if named:
        name, line = named[-1]
        return f"{name}:{line}: {message}"
    if frames:
        frame = frames[-1]
        code = f" ({frame.line})" if frame.line else ""
        return f"{frame.filename}:{frame.lineno}{code}: {message}"
    return message


def _is_foreign(filename: str) -> bool:
    """Whether a frame is torch's or the standard library's, which says nothing of the module."""
    import torch

    if filename.startswith((str(Path(torch.__file__).parent), "<")):
        return True
    return filename.startswith(_STANDARD_LIBRARY) and "site-packages" not in filename
