"""An `nn.Module` as a functional ATen program, without touching a weight."""

from __future__ import annotations

import io
import re
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.compiler.guards import Guard, recording_guards, violated_ranges
from torch2mlx.compiler.guesses import guessing
from torch2mlx.compiler.meta import fake_inputs, fake_weights
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
    program, reasons = export_or_guess(module, args, kwargs, dynamic_shapes, method, dtype)
    if reasons:
        raise CompileError(type(module).__name__, reasons)
    assert program is not None
    return program


def export_or_guess(
    module: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    method: str = "forward",
    dtype: torch.dtype | None = None,
) -> tuple[ExportedProgram | None, list[str]]:
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
    """
    import torch

    given, arguments = fake_inputs((tuple(args), dict(kwargs or {})))
    with torch.no_grad(), fake_weights(module, dtype), _as_forward(module, method):
        guards: Sequence[Guard] = ()
        try:
            with (
                warnings.catch_warnings(record=True) as caught,
                _silent(),
                recording_guards() as guards,
            ):
                warnings.simplefilter("always")
                program = torch.export.export(
                    module, given, arguments, dynamic_shapes=dynamic_shapes, strict=False
                )
            return decomposed(program), _lost_state(module, caught)
        except Exception as error:
            ranges = violated_ranges(str(error), guards)
            if ranges:
                return None, ranges
            first = _reason(error)
        return _guessed(module, given, arguments, dynamic_shapes, first)


def decomposed(program: ExportedProgram) -> ExportedProgram:
    """The program with functional operators only, composites kept."""
    with warnings.catch_warnings():
        # Torch copies its own deprecated types.
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        functional: ExportedProgram = program.run_decompositions({})
    return functional


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
    """State that a module keeps where export loses it, which torch only warns of.

    Other warnings are given on.
    """
    lost = []
    for warning in caught:
        text = str(warning.message)
        if "assigned during export" not in text:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
            continue
        found = dict.fromkeys(re.findall(r"self\.([\w.]*\w)", text))
        names = [name for name in found if not _is_registered(module, name)]
        if names:
            lost.append(
                f"{', '.join(names)}: assigned by forward; register tensors that a module keeps "
                "between calls as buffers, so that the generated model keeps them too"
            )
    return lost


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
            if name and not _is_torch(name):
                return f"{name}:{frame.get('line')}"
    return "forward"


def _reason(error: BaseException) -> str:
    """One line: the user's file and line, and what torch says."""
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if not _is_torch(f.filename) and f.filename != __file__
    ]
    text = str(error)
    user = re.findall(r'File "([^"]+)", line (\d+), in', text)
    named = [(name, line) for name, line in user if not (_is_torch(name) or name == __file__)]
    # The first non-empty line is torch's sentence; the rest are logs and suggestions.
    message = next((line.strip() for line in text.splitlines() if line.strip()), "")
    message = message or type(error).__name__
    if named:
        name, line = named[-1]
        return f"{name}:{line}: {message}"
    if frames:
        frame = frames[-1]
        code = f" ({frame.line})" if frame.line else ""
        return f"{frame.filename}:{frame.lineno}{code}: {message}"
    return message


def _is_torch(filename: str) -> bool:
    import torch

    folder = str(Path(torch.__file__).parent)
    return filename.startswith((folder, "<"))
