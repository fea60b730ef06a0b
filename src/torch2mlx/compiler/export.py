"""An `nn.Module` as a functional ATen program, without touching a weight."""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
) -> ExportedProgram:
    """The program of a module's `forward`: functional, composites (linear, sdpa, norms) kept.

    Modules and inputs may be on the meta device or fake: no weight is read.

    Args:
        module: exported as it is; call `eval()` first for inference.
        args: example of the positional inputs.
        kwargs: example of the keyword inputs.
        dynamic_shapes: as for `torch.export.export`.

    Raises:
        CompileError: with every reason that torch gives, and the user's line of each.
    """
    import torch

    arguments = dict(kwargs or {})
    try:
        with torch.no_grad():
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                program = torch.export.export(
                    module, tuple(args), arguments, dynamic_shapes=dynamic_shapes, strict=False
                )
            functional: ExportedProgram = program.run_decompositions({})
    except Exception as error:
        reasons = _all_reasons(module, tuple(args), arguments, dynamic_shapes)
        first = _reason(error)
        if not any(first.split(":")[0] in reason for reason in reasons):
            reasons.insert(0, first)
        raise CompileError(type(module).__name__, list(dict.fromkeys(reasons))) from error
    lost = _lost_state(module, caught)
    if lost:
        raise CompileError(type(module).__name__, lost)
    return functional


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
    named = [(name, line) for name, line in user if not _is_torch(name)]
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
