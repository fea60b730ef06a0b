"""An `nn.Module` as a functional ATen program, without touching a weight."""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.compiler.meta import fake_inputs, fake_weights
from torch2mlx.errors import CompileError

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

__all__ = ["export_module"]


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
    import torch

    given, arguments = fake_inputs((tuple(args), dict(kwargs or {})))
    try:
        with torch.no_grad(), fake_weights(module, dtype), _as_forward(module, method):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                program = torch.export.export(
                    module, given, arguments, dynamic_shapes=dynamic_shapes, strict=False
                )
            functional: ExportedProgram = program.run_decompositions({})
    except Exception as error:
        ranges = _violated_ranges(str(error))
        if ranges:
            raise CompileError(type(module).__name__, ranges) from error
        with fake_weights(module, dtype), _as_forward(module, method):
            reasons = _all_reasons(module, given, arguments, dynamic_shapes)
        first = _reason(error)
        if not any(first.split(":")[0] in reason for reason in reasons):
            reasons.insert(0, first)
        raise CompileError(type(module).__name__, list(dict.fromkeys(reasons))) from error
    lost = _lost_state(module, caught)
    if lost:
        raise CompileError(type(module).__name__, lost)
    return functional


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


def _violated_ranges(text: str) -> list[str]:
    """What torch suggests for dynamic extents that cannot take every value, one text for each."""
    if not text.startswith("Constraints violated"):
        return []
    _, _, suggestions = text.partition("Suggested fixes:")
    return [
        f"dynamic extent {name}: the module computes in one way for some of its values only; "
        f"torch suggests {name} = {remedy}"
        for name, remedy in re.findall(r"^\s*(\w+) = (\S.*)$", suggestions, re.MULTILINE)
    ]


def _all_reasons(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> list[str]:
    """What torch's draft export has to say, which goes on after a failure."""
    import logging

    from torch._logging._internal import trace_log
    from torch.export import draft_export

    loud = [logging.getLogger("torch.export"), logging.getLogger("torch._export")]
    disabled = [log.disabled for log in (*loud, trace_log)]
    for log in (*loud, trace_log):
        log.disabled = True
    try:
        program = draft_export(module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
        failures = program._report.failures  # type: ignore[attr-defined]
    except Exception:
        # The export's own error says the first reason; draft export adds to it where it can.
        return []
    finally:
        for log, state in zip((*loud, trace_log), disabled, strict=True):
            log.disabled = state
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
